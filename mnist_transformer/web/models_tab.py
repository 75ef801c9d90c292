"""Models: the ledger's tables, and how the models learned."""

import io
from pathlib import Path

import gradio as gr
from PIL import Image

from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.training import log as runlog
from mnist_transformer.web.shelf import Shelf
from tools import report


def build(shelf: Shelf) -> None:
    """Add the tab's parts to the page."""
    rows = ledger.latest()
    for complaint in shelf.complaints:
        gr.Markdown(complaint)
    gr.Markdown("### Quality")
    gr.Markdown(report.results_table(rows), elem_classes="figures")
    gr.Markdown("### Speed")
    gr.Markdown(report.speed_table(rows), elem_classes="figures")
    for name, row in rows.items():
        if not row["metrics"].get("curve"):
            continue
        gr.Markdown(f"### Training of {name}")
        gr.Image(
            loss_plot(row, ledger.results_folder() / name),
            show_label=False,
            interactive=False,
            format="png",
            buttons=["download"],
            elem_classes="plot",
        )


def loss_plot(row: Row, folder: Path) -> Image.Image:
    """The run's plot where there is a source tree, else one of the row's validation curve."""
    path = folder / "loss.png"
    if path.exists():
        content = path.read_bytes()
    else:
        unit = "bits_per_dim" if "bits_per_dim" in row["metrics"] else "loss"
        content = runlog.plot_losses(
            {"kind": "validation", "seconds": seconds, "images": number, unit: value}
            for seconds, number, value in row["metrics"]["curve"]
        )
    return Image.open(io.BytesIO(content)).convert("RGB")
