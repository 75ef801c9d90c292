"""Prompts that a language model wrote: what each has to pass, their file, and its record.

A line is a JSON object: text, operation, operands, answer, model, and parsed, whether
``prompts.parse`` could read the text and so has checked it too. Lines are only ever appended.
"""

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist_transformer.prompting.prompts import (
    MAX_BYTES,
    Prompt,
    compute,
    find_numbers,
    is_held_out,
    parse,
)
from mnist_transformer.utils.files import write_atomic

_ASKS = re.compile(
    r"\?|\b(?:add|calculate|can|compute|could|create|display|doodle|double|draw|drawing|figure out|"
    r"find|generate|get|give|how|i'd|image|imagine|let|make|multiply|need|paint|picture|please|"
    r"print|put|scribble|see|show|sketch|solve|start with|subtract|take|tell|want|what|work out|"
    r"would|write)\b"
)
MAX_WORDS_UNASKED = 5  # "twenty-one minus three, quickly"


def read_corpus(path: Path) -> list[Prompt]:
    """The prompts of a file that ``prompts write`` wrote, one JSON object a line.

    Raises:
        ValueError: a line that is none.
    """
    return read_rows(path.read_bytes(), path)


def read_rows(content: bytes, path: Path) -> list[Prompt]:
    """As ``read_corpus``; ``path`` is for messages."""
    read = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
            operands = tuple(row["operands"])
            prompt = Prompt(row["text"], row["answer"], row["operation"], operands, row["model"])
            if prompt.answer is None or compute(prompt.operation, operands) != prompt.answer:
                raise ValueError
        except (ValueError, KeyError, TypeError, IndexError):
            raise ValueError(f"{path}: line {number} is no prompt with its answer") from None
        read.append(prompt)
    return read


def fault(prompt: Prompt) -> str | None:
    """Why a stated prompt cannot be kept, in a few words; None where nothing is wrong.

    Arithmetic checks the statement. The numbers in the text have to be the stated ones, ``parse``
    has to agree where it can read the text, and the text has to ask for something: one of more
    than a few words does so by a verb or as a question.
    """
    text, operands = prompt.text, Counter(prompt.operands)
    if not text or len(text.encode()) > MAX_BYTES:
        return "too long" if text else "empty"
    answer = compute(prompt.operation, prompt.operands)
    if answer is None:
        return "out of range"
    if answer != prompt.answer:
        return "wrong arithmetic"
    numbers = Counter(find_numbers(text)[1])
    doubled = prompt.operation == "product" and numbers + Counter([2]) == operands
    if numbers != operands and not doubled:
        return "other numbers in the text"
    if parse(text) not in (None, answer):
        return "asks for something else"
    if not _ASKS.search(text.lower()) and len(text.split()) > MAX_WORDS_UNASKED:
        return "asks for nothing"
    return None


def tidy(text: str) -> str:
    """Single spaces, and none at the ends."""
    # JSON can carry half of a surrogate pair; UTF-8 cannot.
    return " ".join(text.encode(errors="ignore").decode().split())


def key(text: str) -> str:
    """The same for texts that differ only in case, spaces or how they end."""
    return tidy(text).casefold().strip(" .!?")


def is_for_testing(prompt: Prompt) -> bool:
    """Whether a written prompt is kept out of training: one in five, and all held-out sums."""
    return is_held_out(prompt.operands) or zlib.crc32(prompt.text.encode()) % 5 == 0


@contextmanager
def appending(out: Path) -> Iterator[Callable[[Prompt], None]]:
    """A function that appends a prompt and sees it to the disk; no empty file stays behind."""
    try:
        with out.open("a", encoding="utf-8") as file:

            def append(prompt: Prompt) -> None:
                row = {
                    "text": prompt.text,
                    "operation": prompt.operation,
                    "operands": prompt.operands,
                    "answer": prompt.answer,
                    "model": prompt.template,
                    "parsed": parse(prompt.text) is not None,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

            yield append
    finally:
        if out.is_file() and not out.stat().st_size:
            out.unlink()


def resume(out: Path) -> list[Prompt]:
    """The prompts already in the file, whose last line is completed or removed if it broke off."""
    if out.exists() and not out.is_file():  # a device may have no end
        raise ValueError(f"{out} is no regular file, expected one to append to")
    content = out.read_bytes() if out.exists() else b""
    whole, _, tail = content.rpartition(b"\n")
    try:
        prompts = read_rows(content, out)
    except ValueError:
        if not tail or not (whole or tail[:9] in b'{"text": '):  # not what a torn write leaves
            raise
        prompts = read_rows(whole, out)
        os.truncate(out, len(content) - len(tail))
    else:
        if tail:
            with out.open("ab") as file:
                file.write(b"\n")
    return prompts


def _record_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.provenance.json")


def earlier_runs(out: Path) -> list[Any]:
    path = _record_path(out)
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_bytes())["runs"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no record of runs, expected what an earlier one wrote"
        ) from None


def record(out: Path, runs: list[Any]) -> None:
    write_atomic(_record_path(out), (json.dumps({"runs": runs}, indent=2) + "\n").encode())
