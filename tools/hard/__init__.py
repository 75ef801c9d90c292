"""The parts of ``tools.hard_use``: each does one kind of harm many times and counts what follows.

A part is a function of the number of tries and an empty folder. It yields its table line by line:
settings, and figures.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TRACEBACK = "Traceback (most recent call last)"
SECONDS = 120  # a command that takes longer hangs

Figures = dict[str, float | None]
Lines = Iterator[tuple[dict[str, str | int | float], Figures]]


def python(*arguments: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    """A command line of this Python, and its environment, which finds the source tree."""
    own = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return [sys.executable, *arguments], {**os.environ, "PYTHONPATH": own, **variables}


def verb(
    *arguments: str,
    folder: Path,
    given: bytes = b"",
    variables: Mapping[str, str] = {},
    stdout: int = subprocess.PIPE,
) -> tuple[int | None, str]:
    """Run a verb in a folder: its exit code (None if it hangs), its output and its errors.

    With another ``stdout`` than a pipe, only the errors are returned.
    """
    command, environment = python("-m", "mnist_transformer", *arguments, **variables)
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            input=given,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as late:
        code, said = None, (late.stdout, late.stderr)
    else:
        code, said = done.returncode, (done.stdout, done.stderr)
    return code, b"".join(part or b"" for part in said).decode(errors="replace")
