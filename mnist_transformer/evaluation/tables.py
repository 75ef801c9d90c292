"""The ledger's figures as markdown tables, one data set at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from mnist_transformer.evaluation.ledger import Row

NOTHING = "–"
Cell = Callable[[Any], str]
Rows = Mapping[str, Row]
"""The latest row of each recipe, by its name."""


def by_dataset(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """For each data set the latest row of each recipe, of rows as ``ledger.rows`` has them."""
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


def table(columns: Sequence[tuple[str, Cell]], rows: Iterable[Any], num_text: int = 1) -> str:
    """A markdown table of columns: a head, and a function from a row to its cell."""
    heads, cells = zip(*columns, strict=True)
    return markdown(heads, ([cell(row) for cell in cells] for row in rows), num_text)


def number(value: float | None, digits: int, scale: float = 1) -> str:
    return NOTHING if value is None else f"{scale * value:,.{digits}f}"


def figure(*path: str, digits: int, scale: float = 1) -> Cell:
    """The cell of a number in a row's metrics, by the keys that lead to it."""

    def cell(row: Row) -> str:
        found = row["metrics"]
        for key in path:
            found = (found or {}).get(key)
        return number(found, digits, scale)

    return cell


def plus_minus(spread: Mapping[str, float] | None, digits: int = 3, scale: float = 1) -> str:
    """A mean and its standard deviation over the seeds."""
    if spread is None:
        return NOTHING
    return " ± ".join(f"{scale * spread[key]:.{digits}f}" for key in ("mean", "sd"))


percent = partial(plus_minus, digits=1, scale=100)
name: Cell = itemgetter("recipe")
device: Cell = itemgetter("device")


def short(parameters: int) -> str:
    """A number of parameters, such as 5.8M or 137k."""
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"


def size(row: Row) -> str:
    return NOTHING if row["parameters"] is None else short(row["parameters"])


def duration(row: Row) -> str:
    return NOTHING if row["seconds"] is None else f"{row['seconds'] / 60:.0f} min"


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


def having(rows: Rows, metric: str) -> list[Row]:
    return [row for row in rows.values() if metric in row["metrics"]]


def _pair(figures: Mapping[str, Any]) -> str:
    if "precision" not in figures:
        return NOTHING
    return " / ".join(f"{100 * figures[key]['mean']:.1f}" for key in ("precision", "recall"))


def results_table(rows: Rows) -> str:
    """Quality of every model that draws, and of as many training images in their place."""
    drawing = having(rows, "images_per_second")
    real: dict[Any, Row] = {}  # one row for each data set and number of images
    for row in having(rows, "drawn"):
        floor, num_samples = row["metrics"]["floor"], row["metrics"].get("num_samples")
        metrics = {"num_samples": num_samples, "drawn": [{"guidance": 1, **floor}]}
        kind = row["dataset"], num_samples
        real[kind] = {"recipe": "training images", "parameters": None, "metrics": metrics}
    return table(
        [
            ("model", name),
            ("parameters", size),
            ("test bits/dim", bits),
            ("as fitted", figure("bits_per_dim_fitted", digits=3)),
            ("samples per seed", figure("num_samples", digits=0)),
            ("class agreement, %", lambda row: percent(drawn(row).get("agreement"))),
            ("guided: agreement, %", lambda row: percent(drawn(row, guided=True).get("agreement"))),
            ("fd_cnn", lambda row: plus_minus(drawn(row).get("fd_cnn"))),
            ("guided: fd_cnn", lambda row: plus_minus(drawn(row, guided=True).get("fd_cnn"))),
            ("precision / recall, %", lambda row: _pair(drawn(row))),
            ("guided: precision / recall, %", lambda row: _pair(drawn(row, guided=True))),
        ],
        [*drawing, *real.values()],
    )


def speed_table(rows: Rows) -> str:
    """How long training took, and how fast every model draws."""
    return table(
        [
            ("model", name),
            ("training", duration),
            ("images seen", lambda row: number(row["images_seen"], 0)),
            ("training images/s", figure("throughput", "images_per_second", digits=0)),
            ("share of matmul peak, %", figure("throughput", "share_of_peak", digits=0, scale=100)),
            ("matmul peak, GFLOP/s", figure("throughput", "peak_flops", digits=0, scale=1e-9)),
            ("drawn images/s at batch 1", figure("images_per_second", "1", digits=1)),
            ("at batch 256", figure("images_per_second", "256", digits=0)),
            ("measured on", device),
        ],
        having(rows, "images_per_second"),
    )
