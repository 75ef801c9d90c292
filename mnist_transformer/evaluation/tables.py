"""The ledger's figures in words, one data set at a time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from mnist_transformer.evaluation.ledger import Row

NOTHING = "–"
Rows = Mapping[str, Row]
"""The latest row of each recipe, by its name."""


def by_dataset(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """By data set, the latest row of each recipe, given rows as ``ledger.rows`` returns them."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(row["dataset"], {})[row["recipe"]] = row
    return groups


def markdown(head: Sequence[str], body: Iterable[Sequence[str]], num_text: int = 1) -> str:
    """A markdown table; the first ``num_text`` columns are text, the others figures."""
    if not (body := list(body)):
        return "Not measured yet.\n"
    lines = [head, ["---"] * num_text + ["---:"] * (len(head) - num_text), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def number(value: float | None, digits: int, scale: float = 1) -> str:
    return NOTHING if value is None else f"{scale * value:,.{digits}f}"


def plus_minus(spread: Mapping[str, float] | None, digits: int = 3, scale: float = 1) -> str:
    """A mean and its standard deviation over the seeds."""
    if spread is None:
        return NOTHING
    return " ± ".join(f"{scale * spread[key]:.{digits}f}" for key in ("mean", "sd"))


percent = partial(plus_minus, digits=1, scale=100)


def short(parameters: int) -> str:
    """A number of parameters, such as 5.8M or 137k."""
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"


def size(row: Row) -> str:
    return NOTHING if row["parameters"] is None else short(row["parameters"])


def bits(row: Row) -> str:
    """Test bits/dim, with ≤ where it is a bound."""
    found = row["metrics"].get("bits_per_dim")
    return ("≤ " if found is not None and not row["exact"] else "") + number(found, 3)


def drawn(row: Row, *, guided: bool = False) -> dict[str, Any]:
    """The figures of the plain samples, or of those with the most guidance."""
    found = [d for d in row["metrics"].get("drawn", ()) if (d["guidance"] != 1) == guided]
    return max(found, key=itemgetter("guidance"), default={})


def fd_cnn(row: Row) -> str:
    """Mean fd_cnn of the plain samples."""
    return number(drawn(row).get("fd_cnn", {}).get("mean"), 3)


def distance(row: Row) -> Any:
    """The same to sort by; infinite where there is none."""
    return drawn(row).get("fd_cnn", {}).get("mean", math.inf)


def having(rows: Rows, metric: str) -> list[Row]:
    return [row for row in rows.values() if metric in row["metrics"]]
