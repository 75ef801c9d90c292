"""Sentences that ask for a number from 0 to 99, and the rules that read their answer.

"Show me 2 + four" asks for a 6. ``grammar.py`` writes such sentences from templates, and a language
model may write others (tools/write_prompts.py).

In templates.json one half of the templates is for training, the other is held out. ``{x}`` stands
for a number or an expression, ``{n}`` for a number, ``{a_n}`` for a number with its article (a 3,
an 8), ``{a}``, ``{b}`` and ``{c}`` for operands. A phrase or sentence of products without ``{a}``
doubles ``{b}``. An expression means the same in every frame. Outside their slots templates hold no
number and not the word "one". The rules also read the phrases of ``also_read``.
"""

import json
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

MAX_NUMBER = 99
MAX_BYTES = 128  # of a prompt in UTF-8
OPERATIONS = ("sum", "difference", "product")
SCOPE = (
    "ask for a number from 0 to 99, or for a sum, difference or product of two such numbers "
    'that is one itself, such as "Draw a 7" or "Show me 2 + four"'
)


class Templates(NamedTuple):
    """One half of the language; the keys of dicts are OPERATIONS."""

    number_frames: list[str]  # requests for a number only
    frames: list[str]  # requests for a number or an expression
    result_frames: list[str]  # requests that suit an expression only
    phrases: dict[str, list[str]]  # expressions
    sentences: dict[str, list[str]]  # expressions with their own request
    unsupported: list[str]  # expressions to refuse; they fit into frames too
    chat: list[str]  # sentences that do not ask for a number; ``{a}`` is any number
    things: list[str]  # nouns to refuse in ``number_frames``


_LANGUAGE = json.loads(Path(__file__).with_name("templates.json").read_text("utf-8"))
TRAIN, HELD_OUT = Templates(**_LANGUAGE["train"]), Templates(**_LANGUAGE["held_out"])
WORDS: dict[str, list[str]] = _LANGUAGE["words"]
SMALL, TENS = WORDS["small"], WORDS["tens"]


def number_words(number: int, joint: str = "-") -> str:
    """42 as "forty-two"; 0 to 99."""
    if number < 20:
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (joint + SMALL[ones] if ones else "")


_WORDS = {number_words(n, joint): n for n in range(MAX_NUMBER + 1) for joint in ("-", " ", "")}
_VALUES = _WORDS | {str(n): n for n in range(MAX_NUMBER + 1)}
_NUMBER = re.compile(
    # An x may touch a digit, as in 2x4; other letters may not, as in 3rd. 2.5 is one number.
    r"(?P<value>(?<![a-wyz0-9.])[0-9]+(?:[.,][0-9]+)?(?![a-wyz0-9])"
    rf"|(?<![a-z])(?<![a-z]-)(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z]))|[0-9]+"
)
SIGN = "[-−–+*×·÷/^%]"
_SIGNS = re.compile(rf"\s*({SIGN}|=)\s*(?=#)|(?<=#)\s*({SIGN})\s*|(?<=#)\s*(x)\s*(?=#)")
# Characters that training prompts lack would be misread silently.
LEARNT, _TYPED = "!'*+,-./:=?×÷−", str.maketrans("’–·", "'-*")
_UNLEARNT = re.compile(rf"[^A-Za-z0-9 {re.escape(LEARNT)}]")
# 0x7 may also mean the product 0 x 7.
HEXADECIMAL = re.compile("(?<![0-9])0x[0-9a-f]", re.IGNORECASE)
_LARGE = re.compile(r"# (?:hundred|thousand|million|billion)\b")
_UNRELATED = re.compile(r"# (?:[/÷] )?#")  # "7/2", "1 7": a model would guess
# A negative number: its sign touches it, and no other number comes before the sign.
_MINUS, _NO_OPERAND = re.compile(r"(?:^|\s)[-−–][0-9]"), re.compile(r"(?<!#) [-−–] #")


@dataclass(frozen=True)
class Prompt:
    """A sentence and what it asks for."""

    text: str
    answer: int | None  # 0 to 99, or None for a request that is to be refused
    operation: str  # "number", one of OPERATIONS, or "refused"
    operands: tuple[int, ...] = ()  # one of a number, two of an operation
    template: str = ""  # the request and the expression in it, "frame | phrase"; or who wrote it

    @property
    def digits(self) -> tuple[int, ...]:
        """The digits to draw side by side, most significant first; none for a refusal."""
        return () if self.answer is None else tuple(map(int, str(self.answer)))


def compute(operation: str, operands: Sequence[int]) -> int | None:
    """The result; None if a number is not from 0 to 99, or the count of operands is wrong."""
    if len(operands) != (1 if operation == "number" else 2):
        return None
    a, b = operands[0], operands[-1]
    result = {"number": a, "sum": a + b, "difference": a - b, "product": a * b}[operation]
    return result if all(0 <= n <= MAX_NUMBER for n in (*operands, result)) else None


def is_held_out(operands: Sequence[int]) -> bool:
    """Whether a pair of operands, in either order, is in no training prompt: about one in eight.

    It holds for all operations, so that 3 + 5 reveals nothing about 5 x 3 either.
    """
    return len(operands) == 2 and zlib.crc32(repr(sorted(operands)).encode()) % 8 == 0


def plain(text: str) -> str:
    """The text in the characters that training prompts have; ValueError for any other character."""
    text = text.translate(_TYPED)
    # Digits of any script are 0 to 9.
    text = "".join(" " if c.isspace() else str(unicodedata.decimal(c, c)) for c in text)
    if odd := _UNLEARNT.search(text):
        expected = f"expected letters a to z, decimal digits and signs of {LEARNT}"
        raise ValueError(f"the prompt has {odd[0]!r} (U+{ord(odd[0]):04X}), {expected}")
    return text


def find_numbers(text: str) -> tuple[str, list[int]]:
    """The text in lower case with # for every number, and the numbers.

    -1 stands for a number that is out of range, broken or written with leading zeros.
    """
    numbers: list[int] = []

    def note(match: re.Match[str]) -> str:
        numbers.append(_VALUES.get(match["value"] or "", -1))
        return "#"

    text = " ".join(text.lower().replace("#", " ").replace("’", "'").split())
    return _plain(_NUMBER.sub(note, text)), numbers


def is_out_of_range(text: str) -> bool:
    """Whether the text has a number, or clearly asks for a result, that is not from 0 to 99.

    Two numbers without a sum, difference or product also count as out of range.
    """
    marked, numbers = find_numbers(text)
    below_zero = _MINUS.search(text) and _NO_OPERAND.search(f" {marked}")
    if -1 in numbers or below_zero or _LARGE.search(marked) or _UNRELATED.search(marked):
        return True
    # "The difference between" does not say which of the two is the larger one.
    return "difference" not in marked and results_of(marked, numbers) == {None}


def results_of(marked: str, numbers: Sequence[int]) -> set[int | None]:
    """The result of every phrase of the templates in a marked text; None: out of range."""
    return {
        compute(operation, [2, *numbers] if len(numbers) < 2 else numbers[::order])
        for phrase, operation, order in _phrases()
        if phrase.count("#") == len(numbers) and phrase in f" {marked} "
    }


def _plain(marked: str) -> str:
    """Spaces around the signs between numbers, no punctuation, single spaces."""
    marked = _SIGNS.sub(lambda match: f" {match[match.lastindex or 0]} ", marked)
    return " ".join(re.sub(r"[^\w\s#'+*×·÷/^%−–-]", " ", marked).split())


@cache
def _phrases() -> list[tuple[str, str, int]]:
    """(phrase with # for numbers, operation, order of its operands: 1, or -1 for reversed)."""
    phrases = []
    halves = TRAIN.phrases, TRAIN.sentences, HELD_OUT.phrases, HELD_OUT.sentences
    for templates_of in (_LANGUAGE["also_read"], *halves):
        for operation, templates in templates_of.items():
            for template in templates:
                order = -1 if -1 < template.find("{b}") < template.find("{a}") else 1
                marked = _plain(re.sub("{[ab]}", "#", template))
                phrases.append((f" {marked.lower()} ", operation, order))
    return phrases
