"""Tables of ledger rows: a column is a head and a function from a row to its cell."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.evaluation.tables import (
    NOTHING,
    Rows,
    bits,
    drawn,
    having,
    markdown,
    number,
    percent,
    plus_minus,
    size,
)

Cell = Callable[[Any], str]


def table(columns: Sequence[tuple[str, Cell]], rows: Iterable[Any], num_text: int = 1) -> str:
    """A markdown table of columns: a head, and a function from a row to its cell."""
    heads, cells = zip(*columns, strict=True)
    return markdown(heads, ([cell(row) for cell in cells] for row in rows), num_text)


def figure(*path: str, digits: int, scale: float = 1) -> Cell:
    """The cell of a number in a row's metrics, by the keys that lead to it."""

    def cell(row: Row) -> str:
        found = row["metrics"]
        for key in path:
            found = (found or {}).get(key)
        return number(found, digits, scale)

    return cell


name: Cell = itemgetter("recipe")
device: Cell = itemgetter("device")


def duration(row: Row) -> str:
    return NOTHING if row["seconds"] is None else f"{row['seconds'] / 60:.0f} min"


def _pair(figures: Mapping[str, Any]) -> str:
    if "precision" not in figures:
        return NOTHING
    return " / ".join(f"{100 * figures[key]['mean']:.1f}" for key in ("precision", "recall"))


def results_table(rows: Rows) -> str:
    """Quality of every model that draws, and of an equal number of training images."""
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
