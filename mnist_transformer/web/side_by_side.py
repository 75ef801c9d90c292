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
from mnist_transformer.utils.classes import DIGITS, classes_of
from mnist_transformer.utils.images import columns_for
from mnist_transformer.utils.terminal import complain
from mnist_transformer.web import shelf
from mnist_transformer.web.dials import dials, for_model, number, read

MAX_CLASSES, MAX_TIMES = 8, 9
EXAMPLES = {"Show me 2 + four": (6,), "twice 21": (4, 2), "Draw me a horse": ()}


def build_draw(models: Mapping[str, GenerativeModel]) -> shelf.Example:
    """Add the parts of the tab that draws digits or other classes."""
    names = list(dict.fromkeys(name for x in models.values() for name in x.class_names))
    words = [name for name in names if name not in DIGITS]
    known = ["digits, as in 2026"] if len(words) < len(names) else []
    known += [f"names, as in {','.join(words[:3])}"] if words else []
    look = {"label": "Draw", "info": ", or ".join(known), "max_lines": 1, "elem_id": "digits"}
    text = gr.Textbox(shelf.first_class(names), render=False, **look)
    times = gr.Slider(1, MAX_TIMES, MAX_TIMES, step=1, label="How many times", render=False)
    run = partial(draw, models)
    return _build("Draw", [text, times], models, run, PLAIN, example=run)


def build_ask(asked: Mapping[str, Asked]) -> shelf.Example:
    """Add the parts of the tab that answers sentences."""
    label = "Ask for a number"
    sentences = list(EXAMPLES)
    text = gr.Textbox(sentences[0], label=label, max_lines=1, elem_id="prompt", render=False)
    drawers = {name: one.drawer for name, one in asked.items()}
    run, first = partial(answer, asked), partial(answer, asked, loads=False)
    example = _build("Ask", [text], drawers, run, GUIDED, example=first)
    gr.Examples(sentences, text, label="For example")
    return example


def _build(
    verb: str,
    inputs: Sequence[gr.Component],
    models: Mapping[str, GenerativeModel],
    run: Callable[..., shelf.Drawing],
    how: Sampling,
    example: Callable[..., shelf.Drawing],
) -> shelf.Example:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            for part in inputs:
                part.render()
            start, cancel = shelf.buttons(verb)
            inputs = [*inputs, *dials(list(models.values()), start=how)]
        with gr.Column(scale=3):
            notes = gr.Markdown()
            with gr.Row(elem_classes="pictures"):
                look = shelf.PICTURE | {"elem_classes": "drawn"}
                outputs = [notes, *(gr.Image(label=name, **look) for name in models)]
    first = shelf.Example(partial(example, *(part.value for part in inputs)), outputs)
    shelf.wire([start.click, inputs[0].submit], cancel, run, inputs, outputs, first)
    return first


def draw(
    models: Mapping[str, GenerativeModel], text: str, times: float | None, *values: Any
) -> shelf.Drawing:
    """Yield a note and a picture per model, step by step; none where a model lacks the class.

    A class that no model has, too many classes, or a number out of range raises ValueError.
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
            remarks.append(f"{name} cannot draw this: {error}.")
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
    return ((note, shelf.shown(canvases, columns)) for canvases in shelf.together(streams))


def answer(
    asked: Mapping[str, Asked], text: str, *values: Any, loads: bool = True
) -> shelf.Drawing:
    """Yield the number that each model reads, and its picture, step by step; none if it refuses.

    Without ``loads``, a model that would have to load first is not asked: EXAMPLES answer.
    An empty or too long text, or a number out of range, raises ValueError.
    """
    text, (seed, wanted) = text.strip(), read(values)
    encode(plain(text))  # raises what reading would

    def stream() -> shelf.Drawing:
        streams, remarks, answers = [], [], []
        for name, one in asked.items():
            how, remark = for_model(one.drawer, wanted, "It")
            if one.is_loaded or loads:
                if not one.is_loaded:
                    complain(f"loading the language model of {name}")
                digits = one.answer(text)
                did = f"reads {''.join(map(str, digits))}" if digits else "refuses"
            else:
                digits, did = EXAMPLES[text], "loads a language model when it is asked"
            answers.append(digits)
            remarks.append(f"{name} {did}. {remark}".strip())
            conditions = one.conditions([text], [digits])
            streams.append(one.drawer.steps(conditions, range(seed, seed + len(digits)), how))
        if not all(answers):
            remarks.append(f"{SCOPE[0].upper()}{SCOPE[1:]}.")
        yield " ".join(remarks), [None] * len(streams)
        for canvases in shelf.together(streams):
            yield " ".join(remarks), shelf.shown(canvases)

    return stream()
