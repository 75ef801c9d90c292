"""The demo's page. Everything is served from here: no scripts, fonts or figures from elsewhere."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from socketserver import BaseServer

import gradio as gr
from starlette.middleware import Middleware

from mnist_transformer.utils.terminal import complain, say
from mnist_transformer.web import gate, models_tab, restore_tab, shelf, side_by_side

NUM_WAITING = 500  # drawings in the queue

THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
STYLE = Path(__file__).with_name("style.css")
ABOUT = "Small transformers that draw digits and other pictures, here on this machine."


def launch(models: Mapping[str, Path], host: str, port: int, waiting: BaseServer) -> gr.Blocks:
    """Start serving the page in a thread; its ``block_thread`` waits for Ctrl-C.

    The page shows those of the named checkpoints that draw; ValueError if none does. It replaces
    ``waiting``. The tabs' examples are drawn in another thread.
    """
    filled, title = shelf.fill(models), "MNIST Transformer"
    keep = (60, gate.KEEP_SECONDS)  # seconds between clean-ups, and how old files get
    with shelf.Page(title=title, analytics_enabled=False, delete_cache=keep) as page:
        gr.Markdown(f"# {title}\n{ABOUT}")
        with gr.Tab("Draw"):
            examples = [side_by_side.build_draw(filled.models)]
        with gr.Tab("Erase and restore"):
            examples.append(restore_tab.build(filled.models))
        if filled.asked:
            with gr.Tab("Ask"):
                examples.append(side_by_side.build_ask(filled.asked))
        with gr.Tab("Models"):
            models_tab.build(filled.complaints)
    waiting.shutdown()
    waiting.server_close()
    page.queue(max_size=NUM_WAITING, api_open=False).launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        theme=THEME,
        css_paths=STYLE,
        app_kwargs={"middleware": [Middleware(gate.Gate, page)]},
        enable_monitoring=False,
        prevent_thread_lock=True,
    )
    say(f"the demo is at http://{host}:{port} (Ctrl-C ends it)")
    threading.Thread(target=_draw, args=[examples], name="examples").start()
    return page


def _draw(examples: Sequence[shelf.Example]) -> None:
    complain("drawing an example for each tab")
    for example in examples:
        try:
            example.run()
        except (ValueError, RuntimeError, MemoryError) as error:  # a tab can do without
            complain(f"an example was not drawn: {error}")
    complain("the examples are drawn")
