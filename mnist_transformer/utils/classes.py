"""Classes as people name them. Importing this needs no torch."""

from collections.abc import Sequence

from mnist_transformer.utils.checks import check_name

DIGITS = tuple("0123456789")


def class_of(name: str, names: Sequence[str]) -> int:
    """The label of a class. Raises ValueError for an unknown name, with the nearest ones."""
    check_name("class", name, names)
    return names.index(name)


def classes_of(text: str, names: Sequence[str]) -> list[int]:
    """The labels of a number's digits, or of names joined by commas; ValueError for other texts."""
    if text in names:  # a name may contain a comma
        return [names.index(text)]
    if not set(names) <= set(DIGITS):
        return [class_of(name.strip(), names) for name in text.split(",")]
    if not (text.isascii() and text.isdigit()):
        expected = f"expected one or more of {names[0]} to {names[-1]}"
        raise ValueError(f"digits are {text[:20]!r}, {expected}")
    return [class_of(digit, names) for digit in text]
