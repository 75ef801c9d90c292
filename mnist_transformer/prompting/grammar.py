"""A grammar that writes requests with their answer: "could you draw 2 + four?", 6.

It fills templates with digits and number words, and adds politeness, case, punctuation and typos.
It also writes requests to refuse. A test split shares with training nothing that it tests: the
templates are two disjoint sets, and a pair of operands, like a misspelt text, belongs either to
training or to a test split.
"""

import random
import re
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import repeat

from mnist_transformer.prompting.prompts import (
    HELD_OUT,
    MAX_BYTES,
    MAX_NUMBER,
    OPERATIONS,
    SMALL,
    TENS,
    TRAIN,
    WORDS,
    Prompt,
    Templates,
    compute,
    is_held_out,
    number_words,
)
from mnist_transformer.utils.checks import check_choice

SPLITS = ("train", "held_out_templates", "held_out_sums", "typos", "out_of_scope")
_KEYBOARD = " qwertyuiop asdfghjkl zxcvbnm "


def prompts(split: str, seed: int = 0) -> Iterator[Prompt]:
    """An endless stream of prompts, the same for the same seed; texts may repeat.

    - train: in scope, some misspelt, and a tenth to refuse.
    - held_out_templates: training pairs, in requests (and half of the phrases) never trained on.
    - held_out_sums: pairs of operands never trained on, in training templates.
    - typos: training templates and pairs with one or two typos, in texts never trained on.
    - out_of_scope: to refuse, in templates never trained on.

    Another split raises ValueError.
    """
    check_choice("split", split, SPLITS)
    rng = random.Random(f"{split} {seed}")
    source = HELD_OUT if split in ("held_out_templates", "out_of_scope") else TRAIN
    made = (_prompt(rng, source, split) for _ in repeat(None))
    return (p for p in made if p is not None and len(p.text.encode()) <= MAX_BYTES)


def _prompt(rng: random.Random, source: Templates, split: str) -> Prompt | None:
    """A prompt of the split; None where the dice gave one of another split."""
    if split == "out_of_scope" or (split == "train" and rng.random() < 0.1):
        return _refused(rng, source)
    operation = rng.choices(("number", *OPERATIONS), (35, 30, 20, 15))[0]
    operands = _operands(rng, operation)
    if is_held_out(operands) != (split == "held_out_sums"):
        return None
    if operation == "number":
        template = rng.choice(source.number_frames + source.frames)
        text = _fill(rng, template, n=operands[0], x=operands[0])
    elif rng.random() < 0.2:
        template = rng.choice(_fitting(source.sentences[operation], operands))
        text = _fill(rng, template, a=operands[0], b=operands[1])
    else:
        frame = rng.choice(source.frames + source.result_frames)
        # A held-out frame around a known phrase is also a test.
        known = source if rng.random() < 0.5 else TRAIN
        phrase = rng.choice(_fitting(known.phrases[operation], operands))
        text = frame.replace("{x}", _fill(rng, phrase, a=operands[0], b=operands[1]))
        template = f"{frame} | {phrase}"
    text = typed = _decorate(rng, text)
    num_typos = {"typos": rng.choice((1, 1, 2)), "train": int(rng.random() < 0.15)}
    for _ in range(num_typos.get(split, 0)):
        typed = misspell(rng, typed)
    is_test = typed != text and zlib.crc32(typed.encode()) % 8 == 0
    if is_test != (split == "typos"):
        return None
    return Prompt(typed, compute(operation, operands), operation, operands, template)


def _operands(rng: random.Random, operation: str) -> tuple[int, ...]:
    """Operands whose result is from 0 to 99, small ones more often."""
    while True:
        if operation == "number":
            operands: tuple[int, ...] = (rng.randrange(rng.choice((10, 100, 100))),)
        elif operation == "product":
            # Many double, as there are phrases for that; few are zero.
            a = rng.choice((2, 2, 2, *range(13)))
            operands = (a, rng.randrange(1, rng.choice((13, 50))))
        else:
            operands = tuple(rng.randrange(rng.choice((10, 20, 100))) for _ in "ab")
        if rng.random() < 0.5:
            operands = operands[::-1]
        if compute(operation, operands) is not None:
            return operands


def _fitting(templates: list[str], operands: tuple[int, ...]) -> list[str]:
    """The templates that fit the operands: those without {a} only where a is 2."""
    return [template for template in templates if "{a}" in template or operands[0] == 2]


def _refused(rng: random.Random, source: Templates) -> Prompt:
    kind = rng.choice(("chat", "chat", "thing", "number", "result", "unsupported", "unfinished"))
    a, b = _unheld(rng)
    frame = rng.choice(source.frames + source.result_frames)
    if kind == "chat":
        template = rng.choice(source.chat)
        text = _fill(rng, template, a=a)
    elif kind == "thing":
        template = rng.choice([frame for frame in source.number_frames if "{a_n}" in frame])
        text = _put(template, "n", rng.choice(source.things))
    elif kind == "number":
        frame = rng.choice(source.number_frames + source.frames)
        text = _put(_put(frame, "n", _wrong_number(rng)), "x", _wrong_number(rng))
        template = f"{frame} | a wrong number"
    else:
        if kind == "unfinished":
            sign = rng.choice(("plus", "+", "minus", "times", "x", "*"))
            phrase = rng.choice(("{a} " + sign, sign + " {a}"))
        elif kind == "unsupported":
            phrase = rng.choice(source.unsupported)
        else:
            operation = rng.choice(OPERATIONS)
            while compute(operation, (a, b)) is not None:
                a, b = sorted(_unheld(rng))
            # "The difference between" does not say which of the two is the larger one.
            phrases = [p for p in source.phrases[operation] if "difference" not in p]
            phrase = rng.choice([p for p in phrases if "{a}" in p])
        text = frame.replace("{x}", _fill(rng, phrase, a=a, b=b, c=rng.randrange(2, 100)))
        template = f"{frame} | {phrase}"
    return Prompt(_decorate(rng, text), None, "refused", (), template)


def _unheld(rng: random.Random) -> tuple[int, int]:
    """Two numbers from 2 to 99 that are not a held-out pair: not even a refusal may show one."""
    while is_held_out(pair := (rng.randrange(2, 100), rng.randrange(2, 100))):
        pass
    return pair


def _wrong_number(rng: random.Random) -> str:
    word = number_words(rng.randrange(1, 10))
    large = str(rng.choice((MAX_NUMBER + 1, 101, 110, rng.randrange(100, 1000), 10_000)))
    small = (f"-{rng.randrange(1, 100)}", f"{rng.randrange(10)}.5")
    return rng.choice((large, large, f"{word} hundred", f"{word} thousand", "one million", *small))


def _fill(rng: random.Random, template: str, **numbers: int) -> str:
    """The template with its numbers, each in digits or in words."""
    # Between words a sign reads as a hyphen or as a letter: twenty-one, twoxfour.
    joined, minus = re.search(r"\}\S\{", template), re.search(r"\} [-−] \{", template)
    in_digits = "abc" if joined else "a" if minus else ""
    for slot, number in numbers.items():
        spelt = number_words(number, rng.choice("- "))
        spoken = rng.random() < 0.5 and slot not in in_digits
        template = _put(template, slot, spelt if spoken else str(number))
    return template


def _put(template: str, slot: str, surface: str) -> str:
    """Fill {slot}, and {a_slot} with an article: "a 3", "an 8", "a one", "a unicorn"."""
    article = "an" if re.match(r"8|1[18]$|[aeo](?!ne\b)", surface) else "a"
    template = template.replace(f"{{{slot}}}", surface)
    return template.replace(f"{{a_{slot}}}", f"{article} {surface}")


def _decorate(rng: random.Random, text: str) -> str:
    """Politeness, punctuation, case and stray spaces."""
    question = text.endswith("?")
    text = text.removesuffix("?").rstrip()
    is_command = text.split(" ", 1)[0].lower() in WORDS["commands"]
    plain = text if re.match(r"I\b", text) else text[:1].lower() + text[1:]
    dice = rng.random()
    if dice < 0.12 and is_command:
        text, question = f"{rng.choice(WORDS['asking'])} {plain}", True
    elif dice < 0.2 and is_command:
        text = f"Please {plain}"
    elif dice < 0.3:
        text = f"{rng.choice(WORDS['greeting'])} {plain}"
    if rng.random() < 0.12 and not text.endswith("="):
        text += rng.choice(WORDS["thanking"])
    if question:
        text += rng.choices(("?", "", "??"), (75, 22, 3))[0]
    elif not text.endswith("="):
        text += rng.choices(("", ".", "!", "..."), (55, 30, 12, 3))[0]
    dice = rng.random()
    if dice < 0.7:
        text = text[:1].upper() + text[1:]
    else:
        text = text.lower() if dice < 0.94 else text.upper()
    if rng.random() < 0.04:
        text = rng.choice((f" {text}", f"{text} ", text.replace(" ", "  ", 1)))
    return text


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
        k = _KEYBOARD.index(letter)
        neighbours = (_KEYBOARD[k - 1] + _KEYBOARD[k + 1]).replace(" ", "")
        slips += [before + near + after for near in neighbours]
    return slips


@cache
def _meanings() -> dict[str, set[str]]:
    """The words that a spelling may mean, of the templates' words and misspelt key words."""
    templates = repr([*TRAIN, *HELD_OUT]).lower()
    meanings = {word: {word} for word in re.findall("[a-z]+", templates)}
    for word in (*SMALL, *TENS, *WORDS["decisive"]):
        for typed in (word, *_slips(word)):
            meanings.setdefault(typed, set()).add(word)
    return meanings
