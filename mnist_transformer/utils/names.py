"""Names as people type them. Importing this needs no torch."""

from collections.abc import Collection
from difflib import get_close_matches


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Raises ValueError for a name that is not known, with the nearest ones that are."""
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4) or list(known)[:20]
        raise ValueError(f"there is no {kind} {name[:40]!r}; nearest: {', '.join(near)}")
