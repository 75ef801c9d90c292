"""Work in several processes: in order, and never waiting for a process that is gone."""

import os
import signal
import time
from multiprocessing import active_children

import pytest

from mnist_transformer.utils.processes import in_processes


def work(number: int) -> int:
    """Twice the number; 7 kills its process, 8 is wrong, and from 100 on it takes a minute."""
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 8:
        raise ValueError("8 is wrong")
    time.sleep(60 * (number >= 100))
    return 2 * number


def test_results_come_in_order() -> None:
    assert list(in_processes(work, [3, 1, 2], 2)) == [6, 2, 4]
    assert list(in_processes(work, [], 2)) == []


def test_a_killed_process_is_one_sentence() -> None:
    with pytest.raises(OSError, match="one of the processes was killed"):
        list(in_processes(work, [1, 7, 2], 2))


def test_an_error_does_not_wait_for_the_rest() -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="8 is wrong"):
        list(in_processes(work, [8, 100, 101, 102], 2))
    results = in_processes(work, [1, 100, 101, 102], 2)
    assert next(results) == 2
    results.close()  # as after Ctrl-C, or an error of whoever takes the results
    while active_children():
        assert time.monotonic() - start < 50
        time.sleep(0.1)
