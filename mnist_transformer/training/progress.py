"""How a training run shows itself in the terminal: a bar, or lines where there is no terminal."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, TextColumn

from mnist_transformer.training.log import Record
from mnist_transformer.utils.terminal import LINE_SECONDS, bars, complain, errors


@contextmanager
def training(name: str) -> Iterator[Callable[[Record], None]]:
    """A function of the records of a training run: a bar, or lines without a terminal."""
    last_line = -math.inf
    words = "{task.percentage:>3.0f}% {task.fields[figures]}"
    with bars(TextColumn("{task.description}"), BarColumn(), TextColumn(words)) as progress:
        # Shown by its first record, because only one of several processes reports.
        bar = progress.add_task(name, total=1.0, figures="", visible=False)

        def report(record: Record) -> None:
            nonlocal last_line
            figures = describe(record)
            progress.update(bar, completed=record.progress, figures=figures, visible=True)
            if record.message:
                complain(record.message)
            elif not errors.is_terminal and time.monotonic() - last_line >= LINE_SECONDS:
                last_line = time.monotonic()
                complain(f"{name} {record.progress:.0%} {figures}")

        yield report


def describe(record: Record) -> str:
    """The figures of a record in words: loss, validation's bits/dim, images/s, time left."""
    parts = [] if math.isnan(record.loss) else [f"loss {record.loss:.4g}"]
    if record.bits_per_dim is not None:
        parts.append(f"validation {record.bits_per_dim:.3f} bits/dim")
    if record.images_per_second:
        parts.append(f"{record.images_per_second:.0f} images/s")
    if record.seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(record.seconds_left))} left")
    return " · ".join(parts)
