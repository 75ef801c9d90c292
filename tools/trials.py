"""Trials: the measurements of an experiment, each a row of the ledger, and the table of them all.

An experiment varies a few settings, often over a few seeds, and measures a few figures. Its name
begins with that of its script in ``experiments/``. Names of settings and figures are the heads
of the table's columns, so they carry their units. A cell of the table is the mean over the seeds,
with the standard deviation where there are several.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.evaluation.tables import NOTHING, markdown

SCRIPTS = Path(__file__).parent.parent / "experiments"

Item = TypeVar("Item")
Settings = Mapping[str, str | int | float]
Figures = Mapping[str, float | None]


def check_experiment(name: str) -> None:
    """Raises ValueError unless a script has this name or its beginning up to a hyphen."""
    scripts = [
        "bench",
        "hard-use",
        *sorted(path.stem.replace("_", "-") for path in SCRIPTS.glob("*.py")),
    ]
    if not any(f"{name}-".startswith(f"{script}-") for script in scripts):
        raise ValueError(f"experiment is {name!r}, expected one of {', '.join(scripts)}")


def name_of(experiment: str, settings: Settings, seed: int | None = None) -> str:
    """A row's ``recipe``, such as "positions/14/rope/seed 0"."""
    check_experiment(experiment)
    parts = [experiment, *map(str, settings.values())]
    return "/".join(parts if seed is None else [*parts, f"seed {seed}"])


def make_row(
    experiment: str,
    settings: Settings,
    figures: Figures,
    seed: int | None = None,
    *,
    parameters: int = 0,
    **details: Any,
) -> Row:
    """A row for ``ledger.append``; a later row of the same name replaces it.

    Args:
        parameters: of the model; 0 where there is none.
        details: further arguments of ``ledger.make_row``.

    Raises:
        ValueError: an unknown experiment.
    """
    metrics = {
        "experiment": experiment,
        "settings": dict(settings),
        "seed": seed,
        "figures": dict(figures),
    }
    name = name_of(experiment, settings, seed)
    return ledger.make_row(name, metrics, parameters=parameters, **details)


def of(experiment: str, rows: Mapping[str, Row]) -> list[Row]:
    """The rows of an experiment among the latest ones (``ledger.latest``), oldest first."""
    return [row for row in rows.values() if row["metrics"].get("experiment") == experiment]


def by_settings(rows: Iterable[Row]) -> list[list[Row]]:
    """Groups of rows that differ only in their seeds, in order of first appearance."""
    return _together(
        rows, lambda row: (row["metrics"]["experiment"], *row["metrics"]["settings"].items())
    )


def _together(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Groups of items with the same key, in order of first appearance."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def figures_of(group: Iterable[Row], name: str) -> list[float]:
    """One figure of every row that has it."""
    found = (row["metrics"]["figures"].get(name) for row in group)
    return [value for value in found if value is not None]


def table(rows: Mapping[str, Row], experiment: str) -> str:
    """Markdown: a line for each combination of settings, with a column for each setting and figure.

    Lines with the same first setting, a model in most tables, stand together.
    """
    groups = by_settings(of(experiment, rows))
    if not groups:  # rows may outlive their script
        check_experiment(experiment)
    by_first = _together(groups, lambda group: next(iter(group[0]["metrics"]["settings"].values())))
    groups = list(chain(*by_first))
    metrics = [row["metrics"] for group in groups for row in group]
    settings = list(dict.fromkeys(name for m in metrics for name in m["settings"]))
    measured = (name for m in metrics for name, x in m["figures"].items() if x is not None)
    figures = list(dict.fromkeys(measured))
    sized = any(group[0]["parameters"] for group in groups)
    head = [*settings, *(["parameters"] if sized else []), *figures]
    lines = []
    for group in groups:
        line = [_text(group[0]["metrics"]["settings"].get(name)) for name in settings]
        if sized:
            line.append(_text(group[0]["parameters"] or None))
        lines.append(line + [_spread(figures_of(group, name)) for name in figures])
    return markdown(head, lines, num_text=len(settings))


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return _text(values[0] if values else None)
    spread = stdev(values)
    return f"{_text(mean(values))} ± {spread:{'.2g' if spread < 100 else ',.0f'}}"


def _text(value: str | int | float | None) -> str:
    """Four significant digits, or all of a whole number's."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
