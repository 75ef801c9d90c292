"""The output of the command line: sentences, pictures, progress bars.

Results go to standard output. Progress and complaints go to standard error, with bars only where
that is a terminal.
"""

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.console import Console

from mnist_transformer.utils.checks import lacks_memory

if TYPE_CHECKING:
    from PIL.Image import Image

SHADES = " .:-=+*#%@"  # from black to white
LINE_SECONDS = 30.0  # long work without a terminal writes a line this often


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # to ``exit_code``: rich would exit with 1


if not os.environ.get("COLUMNS", "").strip("0"):  # with 0 columns rich would print nothing
    os.environ.pop("COLUMNS", None)
screen, errors = _Console(emoji=False), _Console(stderr=True, emoji=False)
_AS_IT_IS: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
say = partial(screen.print, **_AS_IT_IS)  # a line of result
complain = partial(errors.print, **_AS_IT_IS)


def exit_code(program: str, run: Callable[[], object]) -> int:
    """Run a program, report its failure, return 0, 2 (error), 130 (Ctrl-C) or 141 (pipe closed)."""
    for stream, way in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # for characters that its encoding lacks
            stream.reconfigure(errors=way)
    code = 0
    try:
        run()
    except BrokenPipeError:  # `| head` has read enough
        code = 141
    except KeyboardInterrupt:
        code = 130
    except (OSError, ValueError) as error:
        place = getattr(error, "filename", None)
        reason = getattr(error, "strerror", None) or error
        complain(f"{program}: {place}: {reason}" if place else f"{program}: {reason}")
        code = 2
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        complain(f"{program}: out of memory, expected fewer or smaller images at once")
        code = 2
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:  # else the flush at exit fails too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def show(picture: "Image") -> None:
    """Draw a picture, as finely as the terminal can; nothing where the output is not a terminal."""
    if not screen.is_terminal:
        return
    width = min(picture.width, screen.width)  # one pixel per column
    # Colours, and blocks of half a character's height, need a terminal that supports them.
    if screen.color_system and not screen.no_color and screen.encoding.startswith("utf"):
        logging.getLogger("textual_image").addHandler(logging.NullHandler())
        with suppress(Exception):  # whatever stops a preview, the picture is saved
            # The import asks the terminal what it can show.
            from textual_image.renderable import Image as TerminalImage

            screen.print(TerminalImage(picture, width=width, height="auto"))
            return
    height = max(1, width * picture.height // picture.width // 2)
    grey = picture.convert("L").resize((width, height))
    shades = [SHADES[level * len(SHADES) // 256] for level in grey.tobytes()]
    for start in range(0, len(shades), width):
        say("".join(shades[start : start + width]).rstrip())


@contextmanager
def stages() -> Iterator[Callable[[str, int, int | None], None]]:
    """A function of (stage, done, total or None): a bar per stage, or lines without a terminal."""
    tasks, last_line = {}, time.monotonic()
    clock = progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True)
    with bars(progress.MofNCompleteColumn(), clock) as shown:

        def report(stage: str, done: int, total: int | None) -> None:
            nonlocal last_line
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)
            if not errors.is_terminal and time.monotonic() - last_line >= LINE_SECONDS:
                last_line = time.monotonic()
                seconds = shown.tasks[tasks[stage]].time_remaining
                left = f", {timedelta(seconds=seconds)} left" if seconds else ""
                complain(f"{stage}: {done:,}" + (f" of {total:,}{left}" if total else ""))

        yield report


def bars(*columns: progress.ProgressColumn) -> progress.Progress:
    """Bars with names and these columns on standard error; none where that is not a terminal."""
    parts = progress.TextColumn("{task.description}"), progress.BarColumn(), *columns
    hidden = not errors.is_terminal
    return progress.Progress(*parts, console=errors, transient=True, disable=hidden)
