"""Models: the ledger's figures as a table to sort, and as a plot of quality against speed."""

from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr
import pandas as pd  # type: ignore[import-untyped]

from mnist_transformer.evaluation import ledger, tables
from mnist_transformer.evaluation.ledger import Row

QUALITY, SPEED = "fd_cnn", "images/s at batch 256"
KINDS = {True: "exact", False: "bound", None: ""}


def build(complaints: Sequence[str]) -> None:
    """Add the tab's parts to the page; the complaints come first."""
    for complaint in complaints:
        gr.Markdown(complaint)
    for dataset, rows in tables.by_dataset(ledger.rows()).items():
        if measured := tables.having(rows, "images_per_second"):
            frame = figures(measured)
            gr.Markdown(
                f"### Models of {dataset}\n{QUALITY} is the distance of drawn images from the test "
                "images: lower is better. A click on a column's head sorts by it."
            )
            look = {"tooltip": "all", "height": 300, "elem_classes": "plot"}
            gr.ScatterPlot(frame, SPEED, QUALITY, color="model", **look)
            widths = [170] + [82] * (frame.shape[1] - 2) + [150]
            look = {"elem_classes": "figures", "column_widths": widths}
            gr.Dataframe(frame, interactive=False, wrap=True, **look)


def figures(rows: Iterable[Row]) -> pd.DataFrame:
    """A line per ledger row, the best model first; empty where a figure is not measured."""
    return pd.DataFrame(map(_line, rows)).sort_values(QUALITY)


def _line(row: Row) -> dict[str, Any]:
    metrics, plain, guided = row["metrics"], tables.drawn(row), tables.drawn(row, guided=True)

    def figure(value: float | None, digits: int, scale: float = 1) -> float | None:
        return None if value is None else round(scale * value, digits)

    def percent(drawn: dict[str, Any], key: str) -> float | None:
        return figure(drawn.get(key, {}).get("mean"), 1, 100)

    return {
        "model": row["recipe"],
        "size, M": figure(row["parameters"], 1, 1e-6),
        QUALITY: figure(plain.get("fd_cnn", {}).get("mean"), 3),
        SPEED: figure(metrics["images_per_second"]["256"], 1),
        "images/s at batch 1": figure(metrics["images_per_second"]["1"], 1),
        "test bits/dim": figure(metrics.get("bits_per_dim"), 3),
        "is": KINDS[row["exact"]],
        "guided fd_cnn": figure(guided.get("fd_cnn", {}).get("mean"), 3),
        "class read right, %": percent(plain, "agreement"),
        "guided, read right, %": percent(guided, "agreement"),
        "precision, %": percent(plain, "precision"),
        "recall, %": percent(plain, "recall"),
        "samples per seed": metrics.get("num_samples"),
        "training, min": figure(row["seconds"], 0, 1 / 60),
        "measured on": row["device"],
    }
