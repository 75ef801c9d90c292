"""Draw: digits by every model side by side, canvas by canvas."""

from collections.abc import Iterator

import gradio as gr
from PIL import Image

from mnist_transformer import images
from mnist_transformer.web.shelf import Shelf, options, shown_to_visitor, together

MAX_DIGITS, MAX_ROWS, MAX_STEPS = 8, 8, 100


def build(shelf: Shelf, queue: str, limit: int) -> None:
    """Add the tab's parts to the page; ``limit`` drawings of the queue run at a time."""
    with gr.Row():
        digits = gr.Textbox("7", label="Digits", max_lines=1, elem_id="digits")
        rows = gr.Slider(1, MAX_ROWS, 4, step=1, label="Rows")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
    with gr.Row():
        temperature = gr.Slider(0.1, 2, 1, step=0.05, label="Temperature")
        guidance = gr.Slider(0, 5, 1, step=0.25, label="Guidance")
        steps = gr.Slider(0, MAX_STEPS, 0, step=1, label="Steps (0: the model's own)")
    with gr.Row():
        start = gr.Button("Draw", variant="primary", elem_id="draw")
        cancel = gr.Button("Cancel", elem_id="draw-cancel")
    notes = gr.Markdown()
    with gr.Row():
        pictures = [
            gr.Image(
                label=name,
                interactive=False,
                format="png",
                buttons=["download"],
                elem_classes="drawn",
            )
            for name in shelf.models
        ]

    def run(
        digits: str, rows: int, seed: int, temperature: float, guidance: float, steps: int
    ) -> Iterator[list[object]]:
        with shown_to_visitor():
            for note, drawn in draw(shelf, digits, rows, seed, temperature, guidance, steps):
                yield [note, *drawn]

    event = start.click(
        run,
        [digits, rows, seed, temperature, guidance, steps],
        [notes, *pictures],
        concurrency_id=queue,
        concurrency_limit=limit,
        show_progress="hidden",
        api_visibility="private",
    )
    cancel.click(None, cancels=[event], api_visibility="private")


def draw(
    shelf: Shelf,
    digits: str,
    rows: int,
    seed: int | None,
    temperature: float,
    guidance: float,
    steps: int,
) -> Iterator[tuple[str, list[Image.Image | None]]]:
    """A note and a picture a model, over and over while they are drawn.

    Raises:
        ValueError: no digits, too many, or an option out of its range.
    """
    digits = digits.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS):
        raise ValueError(f"digits are {digits[:20]!r}, expected 1 to {MAX_DIGITS} of 0 to 9")
    if seed is None:
        raise ValueError("the seed is empty, expected a whole number of 0 or more")
    labels = [int(digit) for digit in digits] * int(rows)
    streams, remarks = [], []
    for name, model in shelf.models.items():
        how, ignored = options(model, temperature, guidance, int(steps) or None)
        streams.append(model.steps(labels, range(int(seed), int(seed) + len(labels)), how))
        if ignored:
            remarks.append(f"{name} does not use {', '.join(ignored)}.")
    for canvases in together(streams):
        yield (
            " ".join(remarks),
            [
                None if canvas is None else images.enlarge(images.grid(canvas, len(digits)))
                for canvas in canvases
            ],
        )
