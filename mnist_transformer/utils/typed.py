"""Dataclasses out of JSON: what a file says is checked before anything obeys it.

Importing this needs no torch.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

MOST = 2**53  # beyond it a JSON number is not exact


def from_json(kind: Any, values: Mapping[str, Any]) -> Any:
    """Undo ``asdict`` by the annotations of a dataclass, and of those in it.

    Whole numbers are 0 or more, as they all are sizes and counts.

    Raises:
        ValueError: a field is unknown, or a value does not fit its annotation or is not finite.
        TypeError: a field is missing.
    """
    hints = {field.name: get_type_hints(kind)[field.name] for field in fields(kind)}
    if unknown := ", ".join(sorted(values.keys() - hints.keys())):
        raise ValueError(f"{unknown} unknown, expected the fields {', '.join(hints)}")

    def read(hint: Any, value: Any, name: str) -> Any:
        origin, kinds = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):  # of a type and None
            return None if value is None else read(kinds[0], value, name)
        if is_dataclass(hint) and isinstance(value, dict):
            return from_json(hint, value)
        if origin is tuple and isinstance(value, list | tuple):
            kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
            if len(kinds) == len(value):
                return tuple(read(k, v, name) for k, v in zip(kinds, value, strict=True))
        number = (int, float) if hint is float else int
        if hint not in (int, float):
            fits = origin is None and isinstance(value, hint)
        else:
            fits = isinstance(value, number) and not isinstance(value, bool) and abs(value) <= MOST
        if not fits or (hint is int and value < 0):
            wanted = "a whole number of 0 or more" if hint is int else hint.__name__
            raise ValueError(f"{name} is {str(value)[:40]!r}, expected {wanted}")
        return value

    return kind(**{name: read(hints[name], value, name) for name, value in values.items()})
