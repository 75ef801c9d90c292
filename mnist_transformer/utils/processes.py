"""Work in several processes."""

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result], jobs: Iterable[Job], num_processes: int | None = None
) -> Iterator[Result]:
    """``work`` of each job, in order, in this many processes; by default one per core.

    Ctrl-C ends them, and so does an error here or in a job. Raises OSError if one is killed.
    """
    others = active_children()
    leave = signal.SIGINT, signal.SIG_IGN  # Ctrl-C ends this process, which ends the others
    with ProcessPoolExecutor(num_processes, get_context("spawn"), signal.signal, leave) as pool:
        try:
            yield from pool.map(work, jobs)
        except BrokenProcessPool as error:
            raise OSError("one of the processes was killed, maybe for want of memory") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - set(others):
                process.terminate()
