"""Tables and pictures made from the ledger and the runs, so that no page states a figure itself.

A page marks the place of a table; everything between the marks is replaced:

    <!-- ledger:results -->
    <!-- /ledger -->
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.training.info import read_info
from mnist_transformer.training.log import plot_losses, read_metrics
from tools import trials
from tools.trials import NOTHING, markdown

_MARKED = re.compile(r"<!-- ledger:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- /ledger -->", re.DOTALL)
_MARK = re.compile(r"<!-- (?:ledger:[\w-]+|/ledger) -->")
_MAX_RECORDS = 400
"""A committed log keeps about so many records of a run."""

_CURVE_MINUTES = (5, 10, 25, 50, 100, math.inf)

Cell = Callable[[Any], str]


def _table(columns: Sequence[tuple[str, Cell]], rows: Iterable[Any]) -> str:
    """A markdown table of columns, each its head and what it says of a row."""
    heads, cells = zip(*columns, strict=True)
    return markdown(heads, ([cell(row) for cell in cells] for row in rows))


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def _figure(*path: str, digits: int, scale: float = 1) -> Cell:
    """The cell of a number that stands there in a row's metrics, if one does."""

    def cell(row: Row) -> str:
        found = row["metrics"]
        for name in path:
            found = (found or {}).get(name)
        return NOTHING if found is None else _number(scale * found, digits)

    return cell


def _percent(figure: Mapping[str, float] | None) -> str:
    return NOTHING if figure is None else f"{100 * figure['mean']:.1f} ± {100 * figure['sd']:.1f}"


def _plus_minus(figure: Mapping[str, float] | None) -> str:
    return NOTHING if figure is None else f"{figure['mean']:.3f} ± {figure['sd']:.3f}"


def _pair(figures: Mapping[str, Any]) -> str:
    if "precision" not in figures:
        return NOTHING
    return " / ".join(f"{100 * figures[name]['mean']:.1f}" for name in ("precision", "recall"))


def _name(row: Row) -> str:
    return str(row["recipe"])


def _size(row: Row) -> str:
    parameters = row["parameters"]
    if parameters is None:
        return NOTHING
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"


def _duration(row: Row) -> str:
    return NOTHING if row["seconds"] is None else f"{row['seconds'] / 60:.0f} min"


def _device(row: Row) -> str:
    return str(row["device"])


def _bits(row: Row) -> str:
    bits = row["metrics"].get("bits_per_dim")
    return ("≤ " if bits is not None and not row["exact"] else "") + _number(bits, 3)


def _plain(row: Row) -> dict[str, Any]:
    """Figures of the plain samples."""
    return next((d for d in row["metrics"]["drawn"] if d["guidance"] == 1), {})


def _guided(row: Row) -> dict[str, Any]:
    """Figures of the samples with the most guidance."""
    guided = (d for d in row["metrics"]["drawn"] if d["guidance"] != 1)
    return max(guided, key=lambda d: d["guidance"], default={})


def _having(rows: Mapping[str, Row], figure: str) -> list[Row]:
    return [row for row in rows.values() if figure in row["metrics"]]


def results_table(rows: Mapping[str, Row]) -> str:
    """Quality of every model that draws, and of as many training images in their place."""
    drawing = _having(rows, "drawn")
    floors = {row["metrics"].get("num_samples"): row["metrics"]["floor"] for row in drawing}
    real: list[Row] = [
        {
            "recipe": "training images",
            "parameters": None,
            "metrics": {"num_samples": num_samples, "drawn": [{"guidance": 1, **floor}]},
        }
        for num_samples, floor in floors.items()
    ]
    return _table(
        [
            ("model", _name),
            ("parameters", _size),
            ("test bits/dim", _bits),
            ("samples a seed", _figure("num_samples", digits=0)),
            ("class agreement, %", lambda row: _percent(_plain(row).get("agreement"))),
            ("guided: agreement, %", lambda row: _percent(_guided(row).get("agreement"))),
            ("fd_cnn", lambda row: _plus_minus(_plain(row).get("fd_cnn"))),
            ("guided: fd_cnn", lambda row: _plus_minus(_guided(row).get("fd_cnn"))),
            ("precision / recall, %", lambda row: _pair(_plain(row))),
            ("guided: precision / recall, %", lambda row: _pair(_guided(row))),
        ],
        drawing + real,
    )


def speed_table(rows: Mapping[str, Row]) -> str:
    """What training took and how fast every model draws."""
    return _table(
        [
            ("model", _name),
            ("training", _duration),
            ("images seen", lambda row: _number(row["images_seen"], 0)),
            ("training images/s", _figure("throughput", "images_per_second", digits=0)),
            (
                "share of matmul peak, %",
                _figure("throughput", "share_of_peak", digits=0, scale=100),
            ),
            (
                "matmul peak, GFLOP/s",
                _figure("throughput", "peak_flops", digits=0, scale=1e-9),
            ),
            ("drawn images/s at batch 1", _figure("images_per_second", "1", digits=1)),
            ("at batch 256", _figure("images_per_second", "256", digits=0)),
            ("measured on", _device),
        ],
        _having(rows, "drawn"),
    )


def copies_table(rows: Mapping[str, Row]) -> str:
    """Are the drawn images copies of training images?"""
    return _table(
        [
            ("model", lambda drawn: drawn["recipe"]),
            ("guidance", lambda drawn: f"{drawn['guidance']:g}"),
            ("distance ratio", lambda drawn: f"{drawn['copies']['ratio']:.2f}"),
            ("nearer than 1 % of test, %", lambda drawn: f"{100 * drawn['copies']['near']:.1f}"),
            ("exact copies", lambda drawn: str(drawn["copies"]["exact"])),
        ],
        (
            {"recipe": row["recipe"], **drawn}
            for row in _having(rows, "drawn")
            for drawn in row["metrics"]["drawn"]
        ),
    )


def _exact_curve(row: Row) -> list[list[float]]:
    """(seconds, images, bits/dim) at each validation; [] if they are of another loss or a bound."""
    exact = "bits_per_dim" in row["metrics"] and row["exact"]
    return row["metrics"].get("curve", []) if exact else []


def curve_table(rows: Mapping[str, Row]) -> str:
    """Exact validation bits/dim on the way: the first after each of some lengths, and the last."""
    body = []
    for row in _having(rows, "drawn"):
        curve = _exact_curve(row)
        last = len(curve) - 1
        chosen = {
            next((i for i, x in enumerate(curve) if x[0] >= 60 * m), last) for m in _CURVE_MINUTES
        }
        for index in sorted(chosen) if curve else ():
            seconds, images, bits = curve[index]
            body.append([row["recipe"], f"{seconds / 60:.0f}", f"{images:,.0f}", f"{bits:.3f}"])
    return markdown(["model", "minutes", "images seen", "validation bits/dim"], body)


def pixel_table(rows: Mapping[str, Row]) -> str:
    """What the pixel models came to, on the validation split too, as an earlier project's did."""
    found = [r for r in _having(rows, "bits_per_dim_val") if _name(r).startswith("mnist-pixel-")]
    return _table(
        [
            ("model", _name),
            ("parameters", lambda row: f"{row['parameters']:,}"),
            ("measured on", _device),
            ("images seen", lambda row: _number(row["images_seen"], 0)),
            ("training", _duration),
            ("validation bits/dim", _figure("bits_per_dim_val", digits=3)),
            ("test bits/dim", _bits),
        ],
        sorted(found, key=lambda row: row["parameters"]),
    )


def tokenizer_table(rows: Mapping[str, Row]) -> str:
    """What tokenizers leave of the test set, and the best that a model over their codes can do."""
    return _table(
        [
            ("tokenizer", _name),
            ("parameters", _size),
            ("training", _duration),
            (
                "squared error, 1e-3",
                _figure("reconstruction", "squared_error", digits=2, scale=1000),
            ),
            ("class agreement, %", _figure("reconstruction", "agreement", digits=2, scale=100)),
            ("fd_cnn", _figure("reconstruction", "fd_cnn", digits=3)),
            (
                "ceiling: class agreement, %",
                lambda row: _percent(row["metrics"]["ceiling"]["agreement"]),
            ),
            ("fd_cnn", lambda row: _plus_minus(row["metrics"]["ceiling"]["fd_cnn"])),
        ],
        _having(rows, "reconstruction"),
    )


def codes_table(rows: Mapping[str, Row]) -> str:
    """How the codes of each scale are used on the test set."""
    body = []
    for row in _having(rows, "reconstruction"):
        found = row["metrics"]["reconstruction"]
        for scale in (name.removeprefix("usage_") for name in found if name.startswith("usage_")):
            usage, perplexity = found[f"usage_{scale}"], found[f"perplexity_{scale}"]
            body.append([row["recipe"], scale, _number(100 * usage, 1), _number(perplexity, 0)])
    return markdown(["tokenizer", "scale", "codes used, %", "perplexity"], body)


def classifier_table(rows: Mapping[str, Row]) -> str:
    """The judge of the drawn digits."""
    return _table(
        [
            ("model", _name),
            ("parameters", _size),
            ("test accuracy, %", _figure("accuracy", digits=2, scale=100)),
            ("validation, %", _figure("accuracy_val", digits=2, scale=100)),
            ("training", _duration),
        ],
        _having(rows, "accuracy"),
    )


def machines(rows: Mapping[str, Row]) -> str:
    """Where and with what the figures were measured, a line a machine."""
    seen = {f"{row['device']}, torch {row['torch']}": None for row in rows.values()}
    return "".join(f"- {line}\n" for line in seen)


TABLES: dict[str, Callable[[Mapping[str, Row]], str]] = {
    "results": results_table,
    "speed": speed_table,
    "copies": copies_table,
    "curve": curve_table,
    "pixel": pixel_table,
    "tokenizers": tokenizer_table,
    "codes": codes_table,
    "classifier": classifier_table,
    "machines": machines,
    **{name: partial(trials.table, experiment=name) for name in trials.EXPERIMENTS},
}


def render(text: str, rows: Mapping[str, Row] | None = None) -> str:
    """The page with every marked table made anew; nothing else of it changes.

    Args:
        rows: the latest row of each recipe; of the ledger by default.

    Raises:
        ValueError: a mark without its partner or with an unknown name.
    """
    rows = ledger.latest() if rows is None else rows

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"no table is called {name!r}, expected one of {', '.join(TABLES)}")
        return f"<!-- ledger:{name} -->\n{TABLES[name](rows)}<!-- /ledger -->"

    for match in _MARKED.finditer(text):
        if _MARK.search(match["body"]):
            raise ValueError(f"the mark ledger:{match['name']} is not closed by <!-- /ledger -->")
    if len(_MARK.findall(text)) != 2 * len(_MARKED.findall(text)):
        raise ValueError("a mark of the ledger has no partner, expected pairs")
    return _MARKED.sub(fill, text)


def thin(records: list[dict[str, Any]], most: int = _MAX_RECORDS) -> list[dict[str, Any]]:
    """About ``most`` of a run's records: evenly spread ones, the last, and all rare kinds."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, record in enumerate(records):
        kinds.setdefault(tuple(sorted(record)), []).append(index)
    keep = {len(records) - 1} if records else set()
    for indices in kinds.values():
        step = -(-len(indices) // most)
        keep.update(indices[::step])
    return [records[index] for index in sorted(keep)]


def collect(row: Row, run: Path, results: Path) -> list[Path]:
    """Copy the loss plot and the thinned log of the run that a row was measured on.

    Args:
        run: its folder, if it is still there; another run of the recipe, or one that is not
            finished, is left alone.
        results: the copies go to ``results/<recipe>``.

    Returns:
        The files that changed.
    """
    weights, metrics, plot = (run / n for n in ("model.safetensors", "metrics.jsonl", "loss.png"))
    if not weights.is_file() or not metrics.is_file():
        return []
    if read_info(weights).images_seen != row["images_seen"]:
        return []
    kept = "".join(json.dumps(record) + "\n" for record in thin(read_metrics(metrics)))
    contents = {"log.jsonl": kept.encode()}
    if plot.is_file():
        contents["loss.png"] = plot.read_bytes()
    written = []
    for name, content in contents.items():
        path = results / row["recipe"] / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            written.append(path)
    return written


def draw_curve(row: Row, results: Path) -> list[Path]:
    """Plot a row's exact validation bits/dim, where no plot of its run was collected.

    Returns:
        The files that were written.
    """
    path = results / row["recipe"] / "loss.png"
    curve = _exact_curve(row)
    if path.is_file() or not curve:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        plot_losses(
            {"kind": "validation", "seconds": seconds, "images": images, "bits_per_dim": bits}
            for seconds, images, bits in curve
        )
    )
    return [path]


def report(root: Path | None = None, runs: Path | None = None) -> list[Path]:
    """Render README.md and docs/*.md and collect the runs; return the files that changed.

    Args:
        root: the source tree; the one that the package is in by default.
        runs: folder of the runs, a folder a recipe; ``root/runs`` by default.

    Raises:
        ValueError: there is no README.md to render, or a page's marks are wrong.
    """
    root = root or ledger.results_folder().parent
    runs = runs or root / "runs"
    readme = root / "README.md"
    if not readme.exists():
        raise ValueError(f"{readme} is missing, expected the source tree's README")
    rows = ledger.latest(root / "results" / "ledger.jsonl")
    written = []
    for page in [readme, *sorted((root / "docs").glob("*.md"))]:
        before = page.read_text(encoding="utf-8")
        after = render(before, rows)
        if after != before:
            page.write_text(after, encoding="utf-8")
            written.append(page)
    for recipe, row in rows.items():
        written += collect(row, runs / recipe, root / "results")
        written += draw_curve(row, root / "results")
    return written
