"""The demo's page. Everything is served from here: no scripts, fonts or figures from elsewhere."""

from collections.abc import Mapping
from pathlib import Path

import gradio as gr

import mnist_transformer
from mnist_transformer.web import draw_tab, models_tab, restore_tab, shelf

QUEUE = "models"
NUM_RUNNING, NUM_WAITING = 2, 16  # drawings at a time, and in the queue

THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = ".drawn img, .restored img { image-rendering: pixelated }"


def build(models: Mapping[str, Path] | None = None) -> gr.Blocks:
    """The page over checkpoints by name; by default what is shipped and draws.

    Raises:
        ValueError: none of the models can draw.
    """
    if models is None:
        models = {
            name: mnist_transformer.find_weights(name) for name in mnist_transformer.shipped()
        }
    filled = shelf.fill(models)
    with gr.Blocks(
        title="MNIST Transformer", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown("# MNIST Transformer")
        with gr.Tab("Draw"):
            draw_tab.build(filled, QUEUE, NUM_RUNNING)
        with gr.Tab("Erase and restore"):
            restore_tab.build(filled, QUEUE, NUM_RUNNING)
        with gr.Tab("Models"):
            models_tab.build(filled)
    return page.queue(max_size=NUM_WAITING)


def launch(page: gr.Blocks, host: str, port: int, *, block: bool = True) -> str:
    """Serve the page, until Ctrl-C if it is to block; return its address."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        theme=THEME,
        css=CSS,
        max_file_size=restore_tab.MAX_BYTES,
        prevent_thread_lock=not block,
    )
    return address
