"""How a training run shows itself in the terminal: a bar, or lines where there is no terminal."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, TaskID, TextColumn

from mnist_transformer.training.log import Record
from mnist_transformer.utils.terminal import LINE_SECONDS, bars, complain, errors


@contextmanager
def training(name: str) -> Iterator[Callable[[Record], None]]:
    """A function of the records of a training run: a bar, or lines without a terminal."""
    last_line = -math.inf
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[figures]}"),
    )
    with bars(*columns) as progress:
        bar: TaskID | None = None

        def report(record: Record) -> None:
            nonlocal bar, last_line
            if bar is None:  # made here: only one of several processes reports
                bar = progress.add_task(name, total=1.0, figures="")
            figures = describe(record)
            progress.update(bar, completed=record.progress, figures=figures)
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
        minutes, seconds = divmod(round(record.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        parts.append(f"{clock} left")
    return " · ".join(parts)
