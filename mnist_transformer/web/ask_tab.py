"""Ask: a sentence, answered by every model that reads prompts, side by side."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from mnist_transformer.options import GUIDED
from mnist_transformer.prompting.asking import Asked
from mnist_transformer.prompting.prompts import SCOPE
from mnist_transformer.web.dials import MAX_SEED, dials, for_model, number, read
from mnist_transformer.web.shelf import Drawing, buttons, picture, shown, together, wire

EXAMPLES = ["Show me 2 + four", "twice 21", "Draw me a horse"]


def build(asked: Mapping[str, Asked]) -> None:
    """Add the tab's parts to the page."""
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            text = gr.Textbox(EXAMPLES[0], label="Ask for a number", max_lines=1, elem_id="prompt")
            gr.Examples(EXAMPLES, text, label="For example")
            start, cancel = buttons("Ask")
            seed = gr.Number(0, label="Seed")
            knobs = dials([one.drawer for one in asked.values()], start=GUIDED)
        with gr.Column(scale=3):
            notes = gr.Markdown(elem_id="answers")
            with gr.Row(elem_classes="pictures"):
                pictures = [picture(name, "drawn") for name in asked]

    inputs = [text, seed, *knobs]
    wire([start.click, text.submit], cancel, partial(answer, asked), inputs, [notes, *pictures])


def answer(asked: Mapping[str, Asked], text: str, seed: float | None, *values: Any) -> Drawing:
    """The number that every model reads, and its picture, over and over; none where it refuses.

    An empty or too long text, and a number out of its range, raise ValueError.
    """
    first = number("seed", seed, 0, MAX_SEED)
    wanted = read(values)
    streams, remarks, answers = [], [], []
    for name, one in asked.items():
        how, remark = for_model(one.drawer, wanted, "It")
        digits = one.answer(text.strip())
        answers.append(digits)
        read_as = f"reads {''.join(map(str, digits))}" if digits else "refuses"
        remarks.append(f"{name} {read_as}. {remark}".strip())
        seeds = range(first, first + len(digits))
        conditions = one.conditions([text.strip()], [digits])
        streams.append(one.drawer.steps(conditions, seeds, how))
    if not all(answers):
        remarks.append(f"{SCOPE[0].upper()}{SCOPE[1:]}.")
    yield " ".join(remarks), [None] * len(streams)
    for canvases in together(streams):
        yield " ".join(remarks), shown(canvases)
