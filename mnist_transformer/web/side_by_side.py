"""Draw and Ask: every model draws the same classes, or answers the same sentence, side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr
from torch import Tensor

from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.options import GUIDED, PLAIN, Sampling
from mnist_transformer.prompting.asking import Asked
from mnist_transformer.prompting.prompts import SCOPE, plain
from mnist_transformer.prompting.tokens import encode
from mnist_transformer.utils.classes import classes_of
from mnist_transformer.utils.images import columns_for
from mnist_transformer.web.dials import dials, for_model, number, read
from mnist_transformer.web.shelf import Drawing, buttons, picture, shown, together, wire

MAX_CLASSES, MAX_TIMES = 8, 9
EXAMPLES = ["Show me 2 + four", "twice 21", "Draw me a horse"]


def build_draw(models: Mapping[str, GenerativeModel]) -> None:
    """Add the parts of the tab that draws digits or other classes."""
    names = [name for model in models.values() for name in model.class_names]
    first, info = "7" if "7" in names else names[0], "digits, or names of classes such as cat,dog"
    look = {"label": "Draw", "info": info, "max_lines": 1, "elem_id": "digits"}
    text = gr.Textbox(first, render=False, **look)
    times = gr.Slider(1, MAX_TIMES, MAX_TIMES, step=1, label="How many times", render=False)
    _build("Draw", [text, times], models, partial(draw, models), PLAIN)


def build_ask(asked: Mapping[str, Asked]) -> None:
    """Add the parts of the tab that answers sentences."""
    label = "Ask for a number"
    text = gr.Textbox(EXAMPLES[0], label=label, max_lines=1, elem_id="prompt", render=False)
    drawers = {name: one.drawer for name, one in asked.items()}
    _build("Ask", [text], drawers, partial(answer, asked), GUIDED)
    gr.Examples(EXAMPLES, text, label="For example")


def _build(
    verb: str,
    inputs: Sequence[gr.Component],
    models: Mapping[str, GenerativeModel],
    run: Callable[..., Drawing],
    how: Sampling,
) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            for part in inputs:
                part.render()
            start, cancel = buttons(verb)
            knobs = dials(list(models.values()), start=how)
        with gr.Column(scale=3):
            notes = gr.Markdown()
            with gr.Row(elem_classes="pictures"):
                pictures = [picture(name, "drawn") for name in models]
    triggers = [start.click, inputs[0].submit]
    wire(triggers, cancel, run, [*inputs, *knobs], [notes, *pictures])


def draw(
    models: Mapping[str, GenerativeModel], text: str, times: float | None, *values: Any
) -> Drawing:
    """A note and a picture per model, over and over; none where a model lacks the class.

    A class of no model, too many, and a number out of its range raise ValueError.
    """
    num_times = number("how many times", times, 1, MAX_TIMES)
    seed, wanted = read(values)
    streams: list[Iterator[Tensor]] = []
    remarks, labels, reason = [], [], None
    for name, model in models.items():
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
        seeds = range(seed, seed + len(labels) * num_times)
        streams.append(model.steps(labels * num_times, seeds, how))
        remarks.append(remark)
    if reason and not labels:
        raise reason
    note, columns = " ".join(filter(None, remarks)), columns_for(len(labels), num_times)
    return ((note, shown(canvases, columns)) for canvases in together(streams))


def answer(asked: Mapping[str, Asked], text: str, *values: Any) -> Drawing:
    """The number that every model reads, and its picture, over and over; none where it refuses.

    An empty or too long text, and a number out of its range, raise ValueError.
    """
    seed, wanted = read(values)
    encode(plain(text.strip()))  # raises what reading would
    return _answer(asked, text.strip(), seed, wanted)


def _answer(asked: Mapping[str, Asked], text: str, seed: int, wanted: Sampling) -> Drawing:
    streams, remarks, answers = [], [], []
    for name, one in asked.items():
        how, remark = for_model(one.drawer, wanted, "It")
        digits = one.answer(text)
        answers.append(digits)
        read_as = f"reads {''.join(map(str, digits))}" if digits else "refuses"
        remarks.append(f"{name} {read_as}. {remark}".strip())
        conditions = one.conditions([text], [digits])
        streams.append(one.drawer.steps(conditions, range(seed, seed + len(digits)), how))
    if not all(answers):
        remarks.append(f"{SCOPE[0].upper()}{SCOPE[1:]}.")
    yield " ".join(remarks), [None] * len(streams)
    for canvases in together(streams):
        yield " ".join(remarks), shown(canvases)
