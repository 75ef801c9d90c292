"""Ask: a sentence, answered by every model that reads prompts, side by side."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from mnist_transformer.options import GUIDED
from mnist_transformer.prompting.asking import Asked
from mnist_transformer.prompting.prompts import SCOPE
from mnist_transformer.web.dials import MAX_SEED, dials, for_model, read, whole
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

    triggers = [start.click, text.submit]
    wire(triggers, cancel, partial(answer, asked), [text, seed, *knobs], [notes, *pictures])


def answer(asked: Mapping[str, Asked], text: str, seed: float | None, *values: Any) -> Drawing:
    """The number that every model reads, and its picture, over and over while they are drawn.

    A model that refuses has no picture.

    Raises:
        ValueError: the text is empty or too long, or a number is empty or out of its range.
    """
    first = whole("seed", seed, 0, MAX_SEED)
    wanted = read(values)
    streams, remarks, answers = [], [], []
    for name, one in asked.items():
        how, ignored = for_model(one.drawer, wanted)
        digits = one.answer(text.strip())
        answers.append(digits)
        remark = f"{name} reads {''.join(map(str, digits))}." if digits else f"{name} refuses."
        remarks.append(f"{remark} It does not use {', '.join(ignored)}." if ignored else remark)
        seeds = range(first, first + len(digits))
        streams.append(one.steps([text.strip()], [digits], seeds, how))
    if not all(answers):
        remarks.append(f"{SCOPE[0].upper()}{SCOPE[1:]}.")
    note = " ".join(remarks)
    yield note, [None] * len(streams)
    for canvases in together(streams):
        yield note, shown(canvases)
