"""Draw: digits or other classes by every model side by side, canvas by canvas."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
from torch import Tensor

from mnist_transformer.utils.classes import classes_of
from mnist_transformer.utils.images import columns_for
from mnist_transformer.web.dials import MAX_SEED, dials, for_model, number, read
from mnist_transformer.web.shelf import Drawing, Shelf, buttons, picture, shown, together, wire

MAX_CLASSES, MAX_TIMES = 8, 9


def build(shelf: Shelf) -> None:
    """Add the tab's parts to the page."""
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            info = "a digit or a number"
            text = gr.Textbox("7", label="Draw", info=info, max_lines=1, elem_id="digits")
            times = gr.Slider(1, MAX_TIMES, MAX_TIMES, step=1, label="How many times")
            start, cancel = buttons("Draw")
            seed = gr.Number(0, label="Seed")
            knobs = dials(list(shelf.models.values()))
        with gr.Column(scale=3):
            with gr.Row(elem_classes="pictures"):
                pictures = [picture(name, "drawn") for name in shelf.models]
            notes = gr.Markdown()

    inputs = [text, times, seed, *knobs]
    wire([start.click, text.submit], cancel, partial(draw, shelf), inputs, [notes, *pictures])


def draw(shelf: Shelf, text: str, times: float | None, seed: float | None, *values: Any) -> Drawing:
    """A note and a picture per model, over and over; none where a model lacks the class.

    A class of no model, too many, and a number out of its range raise ValueError.
    """
    num_times = number("how many times", times, 1, MAX_TIMES)
    first = number("seed", seed, 0, MAX_SEED)
    wanted = read(values)
    streams: list[Iterator[Tensor]] = []
    remarks, labels, reason = [], [], None
    for name, model in shelf.models.items():
        try:
            labels = classes_of(text.strip(), model.class_names)
        except ValueError as error:
            reason = error
            remarks.append(f"{name} leaves it: {error}.")
            streams.append(iter(()))
            continue
        if len(labels) > MAX_CLASSES:
            raise ValueError(f"{len(labels)} classes are asked for, expected 1 to {MAX_CLASSES}")
        how, remark = for_model(model, wanted, name)
        seeds = range(first, first + len(labels) * num_times)
        streams.append(model.steps(labels * num_times, seeds, how))
        remarks.append(remark)
    if reason and not labels:
        raise reason
    for canvases in together(streams):
        yield " ".join(filter(None, remarks)), shown(canvases, columns_for(len(labels), num_times))
