"""Checks of arguments; each raises ValueError with one sentence. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST = 2**53  # beyond it a JSON number is not exact
EXPECTED = {int: "a whole number of 0 or more", float: "a finite number"}


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that there is too little memory; torch raises RuntimeErrors for it."""
    return isinstance(error, MemoryError) or "memory" in str(error).partition("\n")[0]


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known, with the nearest ones that are."""
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:20]
        raise ValueError(f"unknown {kind} {name[:40]!r}; nearest: {', '.join(near)}")


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Refuse an option's value that is not one of the known ones."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")


def check_multiple(name: str, value: int, of: int, what: str = "") -> None:
    """Refuse a number that is not a multiple of another, which ``what`` names."""
    if value % of:
        raise ValueError(f"{name} is {value}, expected a multiple of {what}{of}")


def check_share(name: str, value: float) -> None:
    """Refuse a number that is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}, expected a number in [0, 1)")


def check_below(name: str, x: Tensor, limit: int) -> None:
    """Refuse whole numbers unless all are in [0, limit)."""
    if len(wrong := x[(x < 0) | (x >= limit)]):
        raise ValueError(f"{name} {wrong[0].item()} is unknown, expected 0 to {limit - 1}")


def check_tensor(name: str, x: Tensor, dtype: torch.dtype, *shape: int | str) -> None:
    """Refuse another dtype or shape; a letter in the shape stands for any length."""
    wrong = any(want not in (have, "B") for have, want in zip(x.shape, shape, strict=False))
    if x.dtype != dtype or x.ndim != len(shape) or wrong:
        got, expected = f"{x.dtype} of shape {tuple(x.shape)}", ", ".join(map(str, shape))
        raise ValueError(f"{name} are {got}, expected {dtype} of shape ({expected})")


def from_json(kind: Any, values: Mapping[str, Any]) -> Any:
    """Undo ``asdict``, with every value checked against the dataclass's annotations.

    An unknown field or an invalid value raises ValueError, a missing field TypeError.
    """
    hints = {field.name: field.type for field in fields(kind)}
    if unknown := ", ".join(sorted(values.keys() - hints.keys())):
        raise ValueError(f"{unknown} unknown, expected the fields {', '.join(hints)}")
    return kind(**{name: _read(hints[name], value, name) for name, value in values.items()})


def _read(hint: Any, value: Any, name: str) -> Any:
    kinds, origin = get_args(hint), get_origin(hint)
    if NoneType in kinds:
        return None if value is None else _read(kinds[0], value, name)
    if is_dataclass(hint) and isinstance(value, dict):
        return from_json(hint, value)
    if origin is tuple and isinstance(value, list):
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(_read(k, v, name) for k, v in zip(kinds, value, strict=True))
    fits = isinstance(value, int | float if hint is float else origin or hint)
    if hint in EXPECTED:
        low = 0 if hint is int else -MOST
        fits = fits and not isinstance(value, bool) and low <= value <= MOST
    if not fits:
        expected = EXPECTED.get(hint, hint.__name__)
        raise ValueError(f"{name} is {str(value)[:40]!r}, expected {expected}")
    return value
