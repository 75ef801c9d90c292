"""Models: the ledger's tables, and the plots where there is a source tree."""

import gradio as gr
from PIL import Image

from mnist_transformer import ledger, report
from mnist_transformer.web.shelf import Shelf


def build(shelf: Shelf) -> None:
    """Add the tab's parts to the page."""
    rows = ledger.latest()
    for complaint in shelf.complaints:
        gr.Markdown(complaint)
    gr.Markdown(f"{report.results_table(rows)}\n\n{report.speed_table(rows)}")
    plots = [ledger.results_folder() / name / "loss.png" for name in rows]
    plots = [path for path in plots if path.exists()]
    for path in plots:
        with Image.open(path) as plot:
            gr.Image(
                plot.convert("RGB"),
                label=path.parent.name,
                interactive=False,
                format="png",
                buttons=["download"],
            )
    if not plots:
        gr.Markdown("The plots of the training runs are in the source tree, not in the package.")
