"""Tables and pictures made from the ledger and the runs, so that no page states a figure itself.

A page marks the place of a table; everything between the marks is replaced:

    <!-- ledger:results -->
    <!-- /ledger -->
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mnist_transformer import checkpoint, ledger, trials
from mnist_transformer.ledger import Row
from mnist_transformer.runlog import read_metrics

_MARKED = re.compile(r"<!-- ledger:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- /ledger -->", re.DOTALL)
_MARK = re.compile(r"<!-- (?:ledger:[\w-]+|/ledger) -->")
_MAX_RECORDS = 400
"""A committed log keeps about so many records of a run."""

_CURVE_MINUTES = (5, 10, 25, 50, 100, math.inf)

NOTHING = "–"


def _table(head: list[str], body: list[list[str]]) -> str:
    """A markdown table; the first column is text, the others figures."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def _percent(figure: Mapping[str, float] | None) -> str:
    return NOTHING if figure is None else f"{100 * figure['mean']:.1f} ± {100 * figure['sd']:.1f}"


def _plus_minus(figure: Mapping[str, float] | None) -> str:
    return NOTHING if figure is None else f"{figure['mean']:.3f} ± {figure['sd']:.3f}"


def _size(parameters: int) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"


def _duration(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds / 60:.0f} min"


def _drawn(row: Row, guided: bool) -> dict[str, Any]:
    """Figures of the plain samples, or of those with the most guidance."""
    drawn = [d for d in row["metrics"].get("drawn", []) if (d["guidance"] != 1) == guided]
    return max(drawn, key=lambda d: d["guidance"], default={})


def _drawing(rows: Mapping[str, Row]) -> list[Row]:
    return [row for row in rows.values() if "drawn" in row["metrics"]]


def results_table(rows: Mapping[str, Row]) -> str:
    """Quality of every model that draws, and of as many training images in their place."""
    head = [
        "model",
        "parameters",
        "test bits/dim",
        "samples a seed",
        "class agreement, %",
        "guided: agreement, %",
        "fd_cnn",
        "guided: fd_cnn",
        "precision / recall, %",
        "guided: precision / recall, %",
    ]
    body = []
    for row in _drawing(rows):
        bits = row["metrics"].get("bits_per_dim")
        bound = "≤ " if bits is not None and not row["exact"] else ""
        plain, guided = _drawn(row, guided=False), _drawn(row, guided=True)
        body.append(
            [
                row["recipe"],
                _size(row["parameters"]),
                bound + _number(bits, 3),
                _number(row["metrics"].get("num_samples"), 0),
                _percent(plain.get("agreement")),
                _percent(guided.get("agreement")),
                _plus_minus(plain.get("fd_cnn")),
                _plus_minus(guided.get("fd_cnn")),
                _pair(plain),
                _pair(guided),
            ]
        )
    floors = {row["metrics"].get("num_samples"): row["metrics"]["floor"] for row in _drawing(rows)}
    for num_samples, floor in floors.items():
        body.append(
            [
                "training images",
                NOTHING,
                NOTHING,
                _number(num_samples, 0),
                _percent(floor["agreement"]),
                NOTHING,
                _plus_minus(floor["fd_cnn"]),
                NOTHING,
                _pair(floor),
                NOTHING,
            ]
        )
    return _table(head, body)


def _pair(figures: Mapping[str, Any]) -> str:
    if "precision" not in figures:
        return NOTHING
    return " / ".join(f"{100 * figures[name]['mean']:.1f}" for name in ("precision", "recall"))


def speed_table(rows: Mapping[str, Row]) -> str:
    """What training took and how fast every model draws."""
    head = [
        "model",
        "training",
        "images seen",
        "training images/s",
        "share of matmul peak, %",
        "drawn images/s at batch 1",
        "at batch 256",
    ]
    body = []
    for row in _drawing(rows):
        speed = row["metrics"].get("images_per_second", {})
        training = row["metrics"].get("throughput", {})
        share = training.get("share_of_peak")
        body.append(
            [
                row["recipe"],
                _duration(row["seconds"]),
                _number(row["images_seen"], 0),
                _number(training.get("images_per_second"), 0),
                NOTHING if share is None else f"{100 * share:.0f}",
                _number(speed.get("1"), 1),
                _number(speed.get("256"), 0),
            ]
        )
    return _table(head, body)


def copies_table(rows: Mapping[str, Row]) -> str:
    """Are the drawn images copies of training images?"""
    head = ["model", "guidance", "distance ratio", "nearer than 1 % of test, %", "exact copies"]
    body = []
    for row in _drawing(rows):
        for drawn in row["metrics"]["drawn"]:
            copies = drawn["copies"]
            body.append(
                [
                    row["recipe"],
                    f"{drawn['guidance']:g}",
                    f"{copies['ratio']:.2f}",
                    f"{100 * copies['near']:.1f}",
                    str(copies["exact"]),
                ]
            )
    return _table(head, body)


def curve_table(rows: Mapping[str, Row]) -> str:
    """Exact validation bits/dim on the way: the first after each of some lengths, and the last."""
    body = []
    for row in _drawing(rows):
        if "bits_per_dim" not in row["metrics"] or not row["exact"]:
            continue  # its curve is of another loss, or of a bound
        curve = row["metrics"].get("curve", [])
        last = len(curve) - 1
        chosen = {
            next((i for i, x in enumerate(curve) if x[0] >= 60 * m), last) for m in _CURVE_MINUTES
        }
        for index in sorted(chosen) if curve else ():
            seconds, images, bits = curve[index]
            body.append([row["recipe"], f"{seconds / 60:.0f}", f"{images:,.0f}", f"{bits:.3f}"])
    return _table(["model", "minutes", "images seen", "validation bits/dim"], body)


def tokenizer_table(rows: Mapping[str, Row]) -> str:
    """What tokenizers leave of the test set, and the best that a model over their codes can do."""
    head = [
        "tokenizer",
        "parameters",
        "training",
        "squared error, 1e-3",
        "class agreement, %",
        "fd_cnn",
        "ceiling: class agreement, %",
        "fd_cnn",
    ]
    body = []
    for row in _tokenizing(rows):
        found, ceiling = row["metrics"]["reconstruction"], row["metrics"]["ceiling"]
        body.append(
            [
                row["recipe"],
                _size(row["parameters"]),
                _duration(row["seconds"]),
                _number(1e3 * found["squared_error"], 2),
                _number(100 * found["agreement"], 2),
                _number(found["fd_cnn"], 3),
                _percent(ceiling["agreement"]),
                _plus_minus(ceiling["fd_cnn"]),
            ]
        )
    return _table(head, body)


def codes_table(rows: Mapping[str, Row]) -> str:
    """How the codes of each scale are used on the test set."""
    body = []
    for row in _tokenizing(rows):
        found = row["metrics"]["reconstruction"]
        for scale in (name.removeprefix("usage_") for name in found if name.startswith("usage_")):
            usage, perplexity = found[f"usage_{scale}"], found[f"perplexity_{scale}"]
            body.append([row["recipe"], scale, _number(100 * usage, 1), _number(perplexity, 0)])
    return _table(["tokenizer", "scale", "codes used, %", "perplexity"], body)


def _tokenizing(rows: Mapping[str, Row]) -> list[Row]:
    return [row for row in rows.values() if "reconstruction" in row["metrics"]]


def classifier_table(rows: Mapping[str, Row]) -> str:
    """The judge of the drawn digits."""
    head = ["model", "parameters", "test accuracy, %", "validation, %", "training"]
    body = [
        [
            row["recipe"],
            _size(row["parameters"]),
            f"{100 * row['metrics']['accuracy']:.2f}",
            f"{100 * row['metrics']['accuracy_val']:.2f}",
            _duration(row["seconds"]),
        ]
        for row in rows.values()
        if "accuracy" in row["metrics"]
    ]
    return _table(head, body)


def machines(rows: Mapping[str, Row]) -> str:
    """Where and with what the figures were measured, a line a machine."""
    seen = {f"{row['device']}, torch {row['torch']}": None for row in rows.values()}
    return "".join(f"- {line}\n" for line in seen)


TABLES: dict[str, Callable[[Mapping[str, Row]], str]] = {
    "results": results_table,
    "speed": speed_table,
    "copies": copies_table,
    "curve": curve_table,
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
    if checkpoint.read_notes(weights).get("images") != str(row["images_seen"]):
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
    return written
