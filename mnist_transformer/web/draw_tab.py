"""Draw: digits by every model side by side, canvas by canvas."""

from functools import partial

import gradio as gr

from mnist_transformer.utils.images import columns_for
from mnist_transformer.web.shelf import (
    MAX_SEED,
    Drawing,
    Shelf,
    dials,
    options,
    picture,
    shown,
    together,
    whole,
    wire,
)

MAX_DIGITS, MAX_TIMES = 8, 9


def build(shelf: Shelf) -> None:
    """Add the tab's parts to the page."""
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            digits = gr.Textbox(
                "7", label="Digits", info="one, or a number", max_lines=1, elem_id="digits"
            )
            times = gr.Slider(1, MAX_TIMES, MAX_TIMES, step=1, label="How many times")
            knobs = dials(list(shelf.models.values()))
            with gr.Row():
                start = gr.Button("Draw", variant="primary", elem_id="draw", min_width=80)
                cancel = gr.Button("Cancel", elem_id="draw-cancel", min_width=80)
        with gr.Column(scale=3):
            with gr.Row(elem_classes="pictures"):
                pictures = [picture(name, "drawn") for name in shelf.models]
            notes = gr.Markdown()

    triggers = [start.click, digits.submit]
    wire(triggers, cancel, partial(draw, shelf), [digits, times, *knobs], [notes, *pictures])


def draw(
    shelf: Shelf,
    digits: str,
    times: float | None,
    temperature: float | None,
    guidance: float | None,
    steps: float | None,
    seed: float | None,
) -> Drawing:
    """A note and a picture a model, over and over while they are drawn.

    Raises:
        ValueError: no digits, too many, or a number that is empty or out of its range.
    """
    digits = digits.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS):
        raise ValueError(f"digits are {digits[:20]!r}, expected 1 to {MAX_DIGITS} of 0 to 9")
    times = whole("how many times", times, 1, MAX_TIMES)
    first = whole("seed", seed, 0, MAX_SEED)
    labels = [int(digit) for digit in digits] * times
    columns = columns_for(digits, times)
    streams, remarks = [], []
    for name, model in shelf.models.items():
        how, ignored = options(model, temperature, guidance, steps)
        streams.append(model.steps(labels, range(first, first + len(labels)), how))
        if ignored:
            remarks.append(f"{name} does not use {', '.join(ignored)}.")
    for canvases in together(streams):
        yield " ".join(remarks), shown(canvases, columns)
