"""Slips of the keyboard that leave a prompt's answer as it is: "Show me sevne"."""

import random
import re
from dataclasses import astuple
from functools import cache

from mnist_transformer.prompting.prompts import SMALL, TENS
from mnist_transformer.prompting.templates import HELD_OUT, TRAIN, words

# Words that decide the answer, which a slip must leave recognisable.
_KEY_WORDS = words(
    "plus minus times added adding take taken away less more than from double twice subtract "
    "multiply multiplied total product difference"
)
_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def misspell(rng: random.Random, text: str) -> str:
    """The text with one slip in a word of four letters or more, if it has such a word.

    A slip that could mean another word is not made: eighty without its y, four without its u.
    """
    found = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not found:
        return text
    match = rng.choice(found)
    word = match[0]
    slip = rng.choice(_slips(word.lower()))
    if _meanings().get(slip, set()) - {word.lower()}:
        return text
    typed = word[0] + (slip.upper() if word.isupper() else slip)[1:]
    return text[: match.start()] + typed + text[match.end() :]


def _slips(word: str) -> list[str]:
    """Words with a letter after the first left out, doubled, swapped with the next, or missed."""
    slips = []
    for i in range(1, len(word)):
        before, letter, after = word[:i], word[i], word[i + 1 :]
        slips += [before + after, before + letter + letter + after]
        if after and after[0] != letter:
            slips.append(before + after[0] + letter + after[1:])
        (row,) = (row for row in _KEYBOARD if letter in row)
        k = row.index(letter)
        slips += [before + near + after for near in row[max(k - 1, 0) : k + 2] if near != letter]
    return slips


@cache
def _meanings() -> dict[str, set[str]]:
    """The words that a spelling may mean, of the templates' words and misspelt key words."""
    templates = repr([astuple(TRAIN), astuple(HELD_OUT)]).lower()
    meanings = {word: {word} for word in re.findall("[a-z]+", templates)}
    for word in (*SMALL, *TENS, *_KEY_WORDS):
        for typed in (word, *_slips(word)):
            meanings.setdefault(typed, set()).add(word)
    return meanings
