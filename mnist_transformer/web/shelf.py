"""The models that the demo draws with, loaded once, and the parts that its tabs share."""

import html
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from PIL import Image
from torch import Tensor

from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.loading import load_model
from mnist_transformer.prompting import asking
from mnist_transformer.utils import images

NUM_RUNNING = 2  # drawings of the queue at a time
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
FRAME_SECONDS = 0.15  # pictures are sent to the browser at most this often

Drawing: TypeAlias = Iterator[tuple[str, list[Image.Image | None]]]  # a note and the pictures


@dataclass(frozen=True)
class Shelf:
    """Models that draw and that can be asked, by name; a sentence about each that won't load."""

    models: dict[str, GenerativeModel]
    asked: dict[str, asking.Asked]
    complaints: list[str]


def fill(paths: Mapping[str, Path]) -> Shelf:
    """Load the models now, so that the first picture need not wait; ValueError if none draws."""
    models, asked, complaints = {}, {}, []
    for name, path in paths.items():
        try:
            model = load_model(path)
            if isinstance(model, GenerativeModel):
                models[name] = model
            if asking.reads_prompts(model):
                asked[name] = asking.Asked(model)
        except ValueError as error:
            complaints.append(f"{name} is left out: {error}")
    if not models:
        why = "; ".join(complaints) or f"{', '.join(paths) or 'nothing'} draws no images"
        raise ValueError(f"no model to draw with: {why}")
    return Shelf(models, asked, complaints)


class Refused(gr.Error):
    """A mistake of a visitor, which is a sentence on the page."""

    def __init__(self, sentence: str) -> None:
        # The page would show it as HTML, and load the files that it names.
        super().__init__(html.escape(sentence), print_exception=False)

    def __str__(self) -> str:
        return self.message


@contextmanager
def visited() -> Iterator[None]:
    """A context of a visitor's request, which says what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise Refused(str(error)) from error


class Page(gr.Blocks):
    """Blocks that refuse in a sentence what no page of theirs sends."""

    async def preprocess_data(self, block_fn: Any, inputs: list, *args: Any) -> Any:
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            if value is None:
                raise Refused(f"{block.label} is empty, expected a value")
            if isinstance(value, dict) and "layers" in value:  # thousands, which are not used
                value.update(layers=[], background=None)
        if re.search("'path': ['\"]https?:", str(inputs)):  # gradio would fetch it
            raise Refused("a picture is at an address, expected an upload")
        try:
            return await super().preprocess_data(block_fn, inputs, *args)
        except Exception as error:  # of which gradio has many kinds
            sentence = getattr(error, "message", "the request has a value of the wrong kind")
            raise Refused(sentence) from error


def buttons(verb: str) -> tuple[gr.Button, gr.Button]:
    """The button that starts a drawing and the one that cancels it."""
    name = verb.lower()
    with gr.Row():
        start = gr.Button(verb, variant="primary", elem_id=name, min_width=80)
        cancel = gr.Button("Cancel", elem_id=f"{name}-cancel", min_width=80)
    return start, cancel


def wire(
    triggers: Sequence[Callable],
    cancel: gr.Button,
    run: Callable[..., Drawing],
    inputs: Sequence[gr.Component],
    outputs: Sequence[gr.Component],
) -> None:
    """Any trigger queues ``run``; its pictures are shown as they are drawn, until ``cancel``.

    ``run`` checks its arguments when it is called, which is done before they are queued.
    """

    def check(*values: object) -> list[None]:
        with visited():
            run(*values)
        return [None] * len(inputs)

    def stream(*values: object) -> Iterator[list[object]]:
        with visited():
            for note, pictures in run(*values):
                for drawn in filter(None, pictures):
                    # gradio names a file by its content and writes it in place: two visitors
                    # with the same picture would read a file that the other is writing.
                    drawn.info["drawing"] = uuid.uuid4().hex
                yield [note, *pictures]

    limit = {"concurrency_id": "models", "concurrency_limit": NUM_RUNNING}
    # The first picture tells the place in the queue; the note before it has no height as yet.
    look = QUIET | {"show_progress": "minimal", "show_progress_on": outputs[1]}
    event = gr.on(triggers, stream, inputs, outputs, validator=check, **limit, **look)
    cancel.click(None, cancels=[event], api_visibility="private")


def picture(label: str | None, kind: str, value: Image.Image | None = None) -> gr.Image:
    """A place for a picture; ``kind`` is its class in style.css."""
    look = {"show_label": label is not None, "buttons": ["download"], "elem_classes": kind}
    return gr.Image(value, label=label, interactive=False, format="png", **look)


def shown(canvases: Iterable[Tensor | None], columns: int = 99) -> list[Image.Image | None]:
    """A picture per model, for ``picture``: by default one row; none where nothing is drawn yet."""
    return [None if x is None else images.enlarge(images.grid(x, columns)) for x in canvases]


def together(streams: Iterable[Iterator[Any]]) -> Iterator[list[Any]]:
    """The latest canvas of every stream, a step of each in turn; the last list is finished.

    None stands for a stream that has drawn nothing.
    """
    latest: list[Any] = []
    sent = 0.0
    for canvases in zip_longest(*streams):
        latest = latest or [None] * len(canvases)
        latest = [old if new is None else new for old, new in zip(latest, canvases, strict=True)]
        if time.monotonic() - sent >= FRAME_SECONDS:
            yield latest
            sent = time.monotonic()
    if latest:
        yield latest
