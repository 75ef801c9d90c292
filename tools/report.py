"""Tables and pictures made from the ledger and the runs, so that no figure is typed by hand.

    python -m tools.report

A page marks the place of a table; everything between the marks is replaced. A table shows MNIST
unless its mark names another data set:

    <!-- ledger:results -->
    <!-- /ledger -->

    <!-- ledger:results cifar10 -->
    <!-- /ledger -->

Inside a sentence, a mark names a recipe and one of ``FIGURES``:

    It has <!-- figure:mnist-scan parameters --><!-- / --> parameters.
"""

import hashlib
import json
import math
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from mnist_transformer.evaluation import ledger, tables
from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.evaluation.tables import Rows
from mnist_transformer.models.config import ModelConfig
from mnist_transformer.models.loading import WEIGHTS, shipped
from mnist_transformer.recipes import RECIPES
from mnist_transformer.training.info import read_info
from mnist_transformer.training.log import plot_losses, read_metrics
from mnist_transformer.utils.files import write_atomic
from mnist_transformer.utils.terminal import exit_code, say
from tools import columns, trials
from tools.columns import Cell

_MARKED = re.compile(
    r"<!-- ledger:(?P<name>[\w-]+)(?: (?P<dataset>[\w-]+))? -->\n(?P<body>.*?)<!-- /ledger -->",
    re.DOTALL,
)
_FIGURE = re.compile(r"(?P<mark><!-- figure:(?P<recipe>\S+) (?P<name>\w+) -->).*?<!-- / -->")
_MARK = re.compile(r"<!-- (?:ledger:[\w-]+(?: [\w-]+)?|/ledger) -->")
_MAX_RECORDS = 400
"""A committed log keeps about so many records of a run."""

# Data that is not MNIST's images: the states that SmolLM2 makes of sentences.
OTHER_LICENCES = {"smollm2-states": "Apache-2.0"}
_CURVE_MINUTES = (5, 10, 25, 50, 100, math.inf)


FIGURES: dict[str, Cell] = {
    "agreement": lambda row: tables.percent(tables.drawn(row)["agreement"]),
    "bits": tables.bits,
    "floor": columns.figure("floor", "fd_cnn", "mean", digits=3),
    "parameters": tables.size,
    "training": columns.duration,
}
"""A row's figures in a sentence."""


def models_table(rows: Rows) -> str:
    """Purpose and figures of each shipped model, lowest fd_cnn first."""
    names = shipped()
    drawing = [row for row in tables.having(rows, "drawn") if columns.name(row) in names]

    def seconds(row: Row) -> str:
        return tables.number(1 / row["metrics"]["images_per_second"]["1"], 2)

    return columns.table(
        [
            ("model", lambda row: f"`{columns.name(row)}`"),
            ("draws", lambda row: RECIPES[columns.name(row)].about),
            ("parameters", tables.size),
            ("seconds per digit", seconds),
            ("test bits/dim", tables.bits),
            ("fd_cnn", tables.fd_cnn),
        ],
        sorted(drawing, key=tables.distance),
        num_text=2,
    )


def copies_table(rows: Rows) -> str:
    """Are the drawn images copies of training images?"""
    return columns.table(
        [
            ("model", lambda drawn: drawn["recipe"]),
            ("guidance", lambda drawn: f"{drawn['guidance']:g}"),
            ("distance ratio", lambda drawn: f"{drawn['copies']['ratio']:.2f}"),
            ("nearer than 1 % of test, %", lambda drawn: f"{100 * drawn['copies']['near']:.1f}"),
            ("exact copies", lambda drawn: str(drawn["copies"]["exact"])),
        ],
        (
            {"recipe": row["recipe"], **drawn}
            for row in tables.having(rows, "drawn")
            for drawn in row["metrics"]["drawn"]
        ),
    )


def _exact_curve(row: Row) -> list[list[float]]:
    """(seconds, images, bits/dim) at each validation; [] if they are of another loss or a bound."""
    exact = "bits_per_dim" in row["metrics"] and row["exact"]
    return row["metrics"].get("curve", []) if exact else []


def curve_table(rows: Rows) -> str:
    """Exact validation bits/dim in training: the first after each of some times, and the last."""
    body = []
    for row in tables.having(rows, "drawn"):
        curve = _exact_curve(row)
        last = len(curve) - 1
        chosen = {
            next((i for i, x in enumerate(curve) if x[0] >= 60 * m), last) for m in _CURVE_MINUTES
        }
        for index in sorted(chosen) if curve else ():
            seconds, images, bits = curve[index]
            body.append([row["recipe"], f"{seconds / 60:.0f}", f"{images:,.0f}", f"{bits:.3f}"])
    return tables.markdown(["model", "minutes", "images seen", "validation bits/dim"], body)


def pixel_table(rows: Rows) -> str:
    """The pixel models, on the validation split too, as an earlier project measured."""
    measured = tables.having(rows, "bits_per_dim_val")
    found = [row for row in measured if columns.name(row).startswith("mnist-pixel-")]
    return columns.table(
        [
            ("model", columns.name),
            ("parameters", lambda row: f"{row['parameters']:,}"),
            ("measured on", columns.device),
            ("images seen", lambda row: tables.number(row["images_seen"], 0)),
            ("training", columns.duration),
            ("validation bits/dim", columns.figure("bits_per_dim_val", digits=3)),
            ("test bits/dim", tables.bits),
        ],
        sorted(found, key=lambda row: row["parameters"]),
    )


def ladder_table(rows: Rows) -> str:
    """Test bits/dim of all models and of the baselines over scans, the smallest last."""
    found = [
        (row["metrics"]["bits_per_dim"], columns.name(row), row["parameters"], tables.bits(row))
        for row in tables.having(rows, "bits_per_dim")
    ]
    for row in rows.values():
        if row["metrics"].get("experiment") == "scans":
            model, pixels = row["metrics"]["settings"].values()
            bits = row["metrics"]["figures"]["test bits/dim"]
            name = f"{model} of {pixels} scanned pixels"
            found.append((bits, name, row["parameters"], f"≤ {tables.number(bits, 3)}"))
    body = [
        [name, f"{parameters:,}" if parameters else tables.NOTHING, bits]
        for _, name, parameters, bits in sorted(found, reverse=True)
    ]
    return tables.markdown(["model", "parameters", "test bits/dim"], body)


def tokenizer_table(rows: Rows) -> str:
    """Reconstructions of the test set, and the best that a model over the codes can do."""
    coded = partial(columns.figure, "reconstruction")
    return columns.table(
        [
            ("tokenizer", columns.name),
            ("parameters", tables.size),
            ("training", columns.duration),
            ("squared error, 1e-3", coded("squared_error", digits=2, scale=1000)),
            ("class agreement, %", coded("agreement", digits=2, scale=100)),
            ("fd_cnn", coded("fd_cnn", digits=3)),
            (
                "ceiling: class agreement, %",
                lambda row: tables.percent(row["metrics"]["ceiling"]["agreement"]),
            ),
            ("fd_cnn", lambda row: tables.plus_minus(row["metrics"]["ceiling"]["fd_cnn"])),
        ],
        tables.having(rows, "ceiling"),
    )


def codes_table(rows: Rows) -> str:
    """How the codes of each scale are used on the test set."""
    body = []
    for row in tables.having(rows, "reconstruction"):
        found = row["metrics"]["reconstruction"]
        for scale in (name.removeprefix("usage_") for name in found if name.startswith("usage_")):
            usage = tables.number(100 * found[f"usage_{scale}"], 1)
            body.append([row["recipe"], scale, usage, f"{found[f'perplexity_{scale}']:,.0f}"])
    return tables.markdown(["tokenizer", "scale", "codes used, %", "perplexity"], body)


def classifier_table(rows: Rows) -> str:
    """The judge of the drawn digits."""
    return columns.table(
        [
            ("model", columns.name),
            ("parameters", tables.size),
            ("test accuracy, %", columns.figure("accuracy", digits=2, scale=100)),
            ("validation, %", columns.figure("accuracy_val", digits=2, scale=100)),
            ("training", columns.duration),
        ],
        tables.having(rows, "accuracy"),
    )


def machines(rows: Rows) -> str:
    """The machines and versions that the figures were measured with, one line per machine."""
    lines = (f"{row['device']}, torch {row['torch']}" for row in rows.values())
    seen = {line.replace(" 1 cores,", " 1 core,"): None for line in lines}  # as old rows have it
    return "".join(f"- {line}\n" for line in seen)


def weights_table(rows: Rows) -> str:
    """The shipped weights, from their files and not from the ledger."""
    body = []
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        info, content = read_info(path), path.read_bytes()
        recipe = RECIPES[info.recipe]
        assert isinstance(recipe.model, ModelConfig)
        body.append(
            [
                path.stem,
                info.recipe,
                recipe.dataset,
                OTHER_LICENCES.get(recipe.dataset, recipe.model.data.licence),
                f"{info.images_seen:,}",
                f"{info.seed}",
                f"{len(content):,}",
                f"`{hashlib.sha256(content).hexdigest()}`",
            ]
        )
    head = ["weights", "recipe", "data", "licence of the data", "images seen", "seed", "bytes"]
    return tables.markdown([*head, "SHA-256"], body, num_text=4)


TABLES: dict[str, Callable[[Rows], str]] = {
    "models": models_table,
    "results": columns.results_table,
    "speed": columns.speed_table,
    "copies": copies_table,
    "curve": curve_table,
    "pixel": pixel_table,
    "ladder": ladder_table,
    "tokenizers": tokenizer_table,
    "codes": codes_table,
    "classifier": classifier_table,
    "machines": machines,
    "weights": weights_table,
}


def known(rows: Iterable[Row]) -> list[Row]:
    """The rows of experiments and of recipes that still exist."""
    return [row for row in rows if "experiment" in row["metrics"] or row["recipe"] in RECIPES]


def render(text: str, rows: Iterable[Row] | None = None) -> str:
    """The page with every marked table and figure replaced; nothing else changes.

    Args:
        rows: oldest first; those of the ledger by default.

    Raises:
        ValueError: a mark without its partner or with an unknown name.
    """
    groups = tables.by_dataset(known(ledger.rows() if rows is None else rows))
    every = ChainMap(*groups.values())

    def fill(match: re.Match[str]) -> str:
        head, _, _ = match[0].partition("\n")
        found = groups.get(match["dataset"] or "mnist", {})
        return f"{head}\n{make_table(match['name'], found)}<!-- /ledger -->"

    def figure(match: re.Match[str]) -> str:
        recipe, name = match["recipe"], match["name"]
        if recipe not in every or name not in FIGURES:
            raise ValueError(f"there is no figure {name!r} of {recipe!r} to fill a mark with")
        return f"{match['mark']}{FIGURES[name](every[recipe])}<!-- / -->"

    for match in _MARKED.finditer(text):
        if _MARK.search(match["body"]):
            raise ValueError(f"the mark ledger:{match['name']} is not closed by <!-- /ledger -->")
    if len(_MARK.findall(text)) != 2 * len(_MARKED.findall(text)):
        raise ValueError("a mark of the ledger has no partner, expected pairs")
    return _FIGURE.sub(figure, _MARKED.sub(fill, text))


def make_table(name: str, rows: Rows) -> str:
    """One of ``TABLES``, else that of an experiment; ValueError for any other name."""
    if name in TABLES:
        return TABLES[name](rows)
    try:
        return trials.table(rows, name)
    except ValueError as error:
        raise ValueError(
            f"no table is called {name!r}, expected one of {', '.join(TABLES)} or an experiment"
        ) from error


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
            write_atomic(path, content)
            written.append(path)
    return written


def draw_curve(row: Row, results: Path) -> list[Path]:
    """Plot a row's exact validation bits/dim, where no plot of its run was collected."""
    path = results / row["recipe"] / "loss.png"
    curve = _exact_curve(row)
    if path.is_file() or not curve:
        return []
    lines = (
        {"kind": "validation", "seconds": seconds, "images": images, "bits_per_dim": bits}
        for seconds, images, bits in curve
    )
    write_atomic(path, plot_losses(lines))
    return [path]


def report(root: Path | None = None, runs: Path | None = None) -> list[Path]:
    """Render README.md and docs/*.md and collect the runs; return the files that changed.

    Args:
        root: the source tree; the one that the package is in by default.
        runs: folder of the runs, one folder per recipe; ``root/runs`` by default.

    Raises:
        ValueError: there is no README.md to render, or a page's marks are wrong.
    """
    root = root or ledger.results_folder().parent
    runs = runs or root / "runs"
    readme = root / "README.md"
    if not readme.exists():
        raise ValueError(f"{readme} is missing, expected the source tree's README")
    path = root / "results" / "ledger.jsonl"
    rows, written = known(ledger.rows(path)), []
    for page in [readme, *sorted((root / "docs").glob("*.md"))]:
        before = page.read_text(encoding="utf-8")
        after = render(before, rows)
        if after != before:
            page.write_text(after, encoding="utf-8")
            written.append(page)
    for recipe, row in {row["recipe"]: row for row in rows}.items():
        written += collect(row, runs / recipe, root / "results")
        written += draw_curve(row, root / "results")
    return written


def main() -> None:
    """Render the tables of README.md and docs/ from the ledger, and collect the runs' plots."""
    written = report()
    for path in written:
        say(f"wrote {path}")
    if not written:
        say("everything is up to date")


if __name__ == "__main__":
    sys.exit(exit_code("tools.report", lambda: tyro.cli(main, prog="python -m tools.report")))
