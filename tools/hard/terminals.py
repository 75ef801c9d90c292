"""Verbs in every kind of terminal, pipe and encoding."""

import os
import pty
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from tools.hard import SECONDS, TRACEBACK, Lines, python, verb

OUTPUTS = ("terminal", "pipe", "closed pipe")
ENCODINGS = ("utf-8", "ascii", "cp1252", "utf-8:strict")
LOOKS: dict[str, dict[str, str]] = {
    "xterm-256color": {"TERM": "xterm-256color"},
    "dumb": {"TERM": "dumb"},
    "NO_COLOR": {"TERM": "xterm", "NO_COLOR": "1"},
}
DRAW = "draw 3 --model mnist-scan"
ASK = "ask --model mnist-prompt-scratch"
LINES = b"draw \xe2\x82\ndraw a \xef\xbc\x97 \xf0\x9f\xa6\x84\n0x7\n"  # half a character, a wide 7
COUNTED = ("commands", "exit code 0 or 141", "pictures lost", "tracebacks", "hung")


def in_terminal(words: str, folder: Path, variables: Mapping[str, str]) -> tuple[int | None, str]:
    """Run a verb in a terminal that never answers: its exit code, None if it hangs, and its text.

    The verb also reads from that terminal, where nobody types.
    """
    command, environment = python("-m", "mnist_transformer", *words.split(), **variables)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said, until = b"", time.monotonic() + SECONDS
    while time.monotonic() < until:
        ready, _, _ = select.select([ours], [], [], 0.2)
        try:
            part = os.read(ours, 4096) if ready else b""
        except OSError:  # Linux's way to say that nobody writes any more
            break
        said += part
        if not part and process.poll() is not None:
            break
    os.close(ours)
    if process.poll() is None:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return None, said.decode(errors="replace")
    return process.returncode, said.decode(errors="replace")


def terminals(share: float, folder: Path) -> Lines:
    """Run every verb in the given share of all settings, evenly spread."""
    settings = list(product(OUTPUTS, ENCODINGS, LOOKS, ("list", DRAW)))
    settings = [settings[int(i / share)] for i in range(max(1, int(share * len(settings))))]
    found = {output: Counter[str]() for output in OUTPUTS}
    for number, (output, encoding, look, words) in enumerate(settings):
        place = folder / str(number)
        place.mkdir()
        variables = {"PYTHONIOENCODING": encoding, **LOOKS[look]}
        if output == "terminal":
            code, said = in_terminal(words, place, variables)
        elif output == "pipe":
            code, said = verb(*words.split(), folder=place, variables=variables)
        else:
            ours, theirs = os.pipe()
            os.close(ours)  # the reader has left
            code, said = verb(*words.split(), folder=place, variables=variables, stdout=theirs)
            os.close(theirs)
        count = found[output]
        count["commands"] += 1
        count["exit code 0 or 141"] += code in (0, 141)
        count["tracebacks"] += TRACEBACK in said
        count["hung"] += code is None
        count["pictures lost"] += words == DRAW and not (place / "3.png").is_file()
    for output, count in found.items():
        yield {"output": output}, {name: count[name] for name in COUNTED}
    (folder / "lines").mkdir()
    ends = Counter[str]()
    for encoding in ENCODINGS:
        variables = {"PYTHONIOENCODING": encoding}
        code, said = verb(*ASK.split(), folder=folder / "lines", given=LINES, variables=variables)
        ends["commands"] += 1
        ends["exit code 0 or 141"] += code == 0
        ends["tracebacks"] += TRACEBACK in said
        ends["hung"] += code is None
    yield {"output": "lines of broken text for ask"}, {name: ends[name] for name in COUNTED}
