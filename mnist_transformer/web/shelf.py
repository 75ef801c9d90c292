"""The models that the demo draws with, loaded once, and the parts that its tabs share."""

import asyncio
import html
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
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
PICTURE: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["download"]}
FRAME_SECONDS = 0.15  # pictures are sent to the browser at most this often

Drawing: TypeAlias = Iterator[tuple[str, list[Image.Image | None]]]  # a note and the pictures


@dataclass(frozen=True)
class Shelf:
    """Models that draw and that can be asked, by name; a sentence about each that won't load."""

    models: dict[str, GenerativeModel]
    asked: dict[str, asking.Asked]
    complaints: list[str]


def fill(paths: Mapping[str, Path]) -> Shelf:
    """Load the models, but no language model; ValueError if none draws."""
    shelf = Shelf({}, {}, [])
    for name, path in paths.items():
        try:
            model = load_model(path)
            if isinstance(model, GenerativeModel):
                shelf.models[name] = model
            if isinstance(model, asking.ReadsPrompts):
                shelf.asked[name] = asking.Asked(model)
        except ValueError as error:
            shelf.complaints.append(f"{name} is left out: {error}")
    if not shelf.models:
        why = "; ".join(shelf.complaints) or f"{', '.join(paths) or 'nothing'} draws no images"
        raise ValueError(f"no model to draw with: {why}")
    return shelf


class Page(gr.Blocks):
    """Blocks that answer a visitor's mistake, or a forged request, with one sentence."""

    async def preprocess_data(self, block_fn: Any, inputs: list, *args: Any) -> Any:
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            if value is None:
                raise ValueError(f"{block.label} is empty, expected a value")
            if isinstance(value, dict) and "layers" in value:  # maybe thousands, all unused
                value.update(layers=[], background=None)
        if re.search("'path': ['\"]https?:", str(inputs)):  # gradio would fetch it
            raise ValueError("a picture is at an address, expected an upload")
        try:
            return await super().preprocess_data(block_fn, inputs, *args)
        except Exception as error:  # gradio raises many kinds
            sentence = getattr(error, "message", "the request has a value of the wrong kind")
            raise ValueError(sentence) from error

    async def process_api(self, block_fn: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return await super().process_api(block_fn, *args, **kwargs)
        except ValueError as error:
            if block_fn.is_validator_function:  # the first input tells; no picture has a mark
                return {"data": gr.validate(False, str(error))}
            # The page would render it as HTML, and load the files that it names.
            raise gr.Error(html.escape(str(error)), print_exception=False) from error


class Example:
    """A tab's first drawing, made once, in the background, for all who open the page.

    Output without pictures is not shown.
    """

    def __init__(self, draw: Callable[[], Drawing], outputs: Sequence[gr.Component]) -> None:
        self.draw, self.done = draw, False
        self.latest: list[Any] | None = None
        self.shown = gr.on(None, self._watch, None, outputs, concurrency_limit=None, **QUIET)

    def run(self) -> None:
        """Draw, unless the program ends first."""
        try:
            for note, pictures in self.draw():
                if pictures:
                    self.latest = [note, *pictures]
                if not threading.main_thread().is_alive():
                    break
        finally:
            self.done = True

    async def _watch(self) -> AsyncIterator[list[Any]]:
        done, sent = False, None
        while not done:
            done, latest = self.done, self.latest
            if latest is not None and latest is not sent:
                yield [_own(value) for value in latest]
                sent = latest
            await asyncio.sleep(FRAME_SECONDS)


def _own(value: Any) -> Any:
    """A visitor's own copy of a picture; any other value unchanged.

    gradio names a file by its content and writes it in place: two visitors with the same picture
    would read a file that the other is writing.
    """
    if isinstance(value, Image.Image):
        value = value.copy()
        value.info["drawing"] = uuid.uuid4().hex
    return value


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
    example: Example,
) -> None:
    """Any trigger queues ``run``; its pictures are shown as they are drawn, until ``cancel``.

    ``run`` checks its arguments when it is called, which is done before they are queued. Its
    pictures take the place of the example's.
    """

    def check(*values: object) -> list[None]:
        run(*values)
        return [None] * len(inputs)

    def stream(*values: object) -> Iterator[list[object]]:
        for note, pictures in run(*values):
            yield [note, *map(_own, pictures)]

    limit = {"concurrency_id": "models", "concurrency_limit": NUM_RUNNING}
    # The first picture shows the place in the queue: the note before it has no height yet.
    look = QUIET | {"show_progress": "minimal", "show_progress_on": outputs[1]}
    ends = {"cancels": [example.shown]}
    event = gr.on(triggers, stream, inputs, outputs, validator=check, **ends, **limit, **look)
    cancel.click(None, cancels=[event], api_visibility="private")


def first_class(names: Sequence[str]) -> str:
    """The class that the page opens with."""
    return "7" if "7" in names else names[0]


def shown(canvases: Iterable[Tensor | None], columns: int = 99) -> list[Image.Image | None]:
    """A picture per model, by default one row; none where nothing is drawn yet."""
    return [None if x is None else images.enlarge(images.grid(x, columns)) for x in canvases]


def together(streams: Sequence[Iterator[Any]]) -> Iterator[list[Any]]:
    """The latest canvas of every stream, each advanced in turn; the last list is finished.

    None stands for a stream that has drawn nothing.
    """
    latest: list[Any] = [None] * len(streams)
    sent = 0.0
    for canvases in zip_longest(*streams):
        latest = [old if new is None else new for old, new in zip(latest, canvases, strict=True)]
        if time.monotonic() - sent >= FRAME_SECONDS:
            yield latest
            sent = time.monotonic()
    yield latest
