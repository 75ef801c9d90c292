"""What people ask for, checked: a mistake is a ValueError of one sentence. This needs no torch."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known, with the nearest ones that are."""
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:20]
        raise ValueError(f"there is no {kind} {name[:40]!r}; nearest: {', '.join(near)}")


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Refuse an option's value that is not one of a few."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")


def check_share(name: str, value: float) -> None:
    """Refuse a number that is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}, expected a number in [0, 1)")


def check_below(name: str, x: Tensor, limit: int) -> None:
    """Refuse whole numbers of which one is not in [0, limit)."""
    if len(wrong := x[(x < 0) | (x >= limit)]):
        raise ValueError(f"{name} {wrong[0].item()} is unknown, expected 0 to {limit - 1}")


def check_tensor(name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse another dtype or shape."""
    if x.dtype != dtype or x.shape != shape:
        raise ValueError(
            f"{name} are {x.dtype} of shape {tuple(x.shape)}, expected {dtype} of shape {shape}"
        )
