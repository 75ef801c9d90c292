"""Models: the ledger's tables, and how the models learned."""

import io
from pathlib import Path

import gradio as gr
from PIL import Image

from mnist_transformer.evaluation import ledger, tables
from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.training.log import plot_losses
from mnist_transformer.web.shelf import Shelf, picture


def build(shelf: Shelf) -> None:
    """Add the tab's parts to the page."""
    rows = ledger.rows()
    for complaint in shelf.complaints:
        gr.Markdown(complaint)
    for dataset, some in tables.by_dataset(rows).items():
        if tables.having(some, "images_per_second"):
            for title, table in (("Quality", tables.results_table), ("Speed", tables.speed_table)):
                gr.Markdown(f"### {title} on {dataset}\n{table(some)}", elem_classes="figures")
    for name, row in {row["recipe"]: row for row in rows}.items():
        if row["metrics"].get("curve"):
            gr.Markdown(f"### Training of {name}")
            picture(None, "plot", loss_plot(row, ledger.results_folder() / name))


def loss_plot(row: Row, folder: Path) -> Image.Image:
    """The run's plot where there is a source tree, else one of the row's validation curve."""
    if (path := folder / "loss.png").exists():
        return Image.open(path).convert("RGB")
    unit = "bits_per_dim" if "bits_per_dim" in row["metrics"] else "loss"
    content = plot_losses(
        {"kind": "validation", "seconds": seconds, "images": number, unit: value}
        for seconds, number, value in row["metrics"]["curve"]
    )
    return Image.open(io.BytesIO(content)).convert("RGB")
