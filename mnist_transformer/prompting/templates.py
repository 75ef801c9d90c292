"""The sentences that ``grammar.py`` fills in: one half to train on, one held out.

Operations are "sum", "difference" and "product". ``{x}`` stands for a number or an expression,
``{n}`` for a number, ``{a_n}`` for a number with its article (a 3, an 8), ``{a}``, ``{b}`` and
``{c}`` for operands. A phrase or sentence of products without ``{a}`` doubles ``{b}``. An
expression means the same in every frame. Outside their slots templates hold no number and not
the word "one".
"""

import json
import re
from dataclasses import dataclass
from importlib.resources import files

SLOTS = {"{x}", "{n}", "{a_n}", "{a}", "{b}", "{c}"}


@dataclass(frozen=True)
class Templates:
    """One half of the language.

    Args:
        number_frames: requests for a number only.
        frames: requests for a number or an expression.
        result_frames: requests that suit an expression only.
        phrases, sentences: expressions of each operation, without and with their own request.
        unsupported: expressions to refuse; they fit into frames too.
        chat: sentences that do not ask for a number; ``{a}`` is any number.
        things: nouns to refuse in ``number_frames``.
    """

    number_frames: list[str]
    frames: list[str]
    result_frames: list[str]
    phrases: dict[str, list[str]]
    sentences: dict[str, list[str]]
    unsupported: list[str]
    chat: list[str]
    things: list[str]

    def __post_init__(self) -> None:
        unknown = set(re.findall(r"\{\w*\}", repr(self))) - SLOTS
        if unknown:
            raise ValueError(f"templates hold {unknown}, expected slots of {SLOTS}")


def words(text: str) -> list[str]:
    return text.split()


_content = json.loads(files(__package__).joinpath("templates.json").read_text("utf-8"))
TRAIN, HELD_OUT = Templates(**_content["train"]), Templates(**_content["held_out"])
