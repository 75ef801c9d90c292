"""The models that the demo draws with, loaded once, and what its tabs share."""

import html
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias, TypeVar

import gradio as gr
from PIL import Image
from torch import Tensor

from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.prompted import Prompted
from mnist_transformer.models.reader import Reader
from mnist_transformer.options import Sampling
from mnist_transformer.prompting import asking
from mnist_transformer.utils import images
from mnist_transformer.utils.devices import to_device

QUEUE = "models"
NUM_RUNNING = 2  # drawings of the queue at a time
FRAME_SECONDS = 0.15  # pictures are sent to the browser at most this often
MAX_STEPS, MAX_SEED = 100, 2**31

Canvas = TypeVar("Canvas")
Drawing: TypeAlias = Iterator[tuple[str, list[Image.Image | None]]]  # a note and the pictures


@dataclass(frozen=True)
class Shelf:
    """Models that draw and that can be asked, by name; a sentence about each that won't load."""

    models: dict[str, GenerativeModel]
    asked: dict[str, asking.Asked] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def fill(paths: Mapping[str, Path]) -> Shelf:
    """Load what draws; now, so that the first picture need not wait for it.

    Raises:
        ValueError: none of the models can draw.
    """
    models, asked, complaints = {}, {}, []
    for name, path in paths.items():
        try:
            model = to_device(checkpoint.load(path))
            if isinstance(model, GenerativeModel):
                models[name] = model
            if isinstance(model, Prompted | Reader):
                asked[name] = asking.system_of(model)
        except ValueError as error:
            complaints.append(f"{name} is left out: {error}")
    if not models:
        why = "; ".join(complaints) or f"{', '.join(paths) or 'nothing'} draws no digits"
        raise ValueError(f"no model to draw with: {why}")
    return Shelf(models, asked, complaints)


@contextmanager
def shown_to_visitor() -> Iterator[None]:
    """A mistake is a sentence on the page."""
    try:
        yield
    except ValueError as error:
        # The page would show it as HTML, and load what that names.
        raise gr.Error(html.escape(str(error)), print_exception=False) from error


def wire(
    triggers: Sequence[Callable],
    cancel: gr.Button,
    run: Callable[..., Drawing],
    inputs: Sequence[gr.Component],
    outputs: Sequence[gr.Component],
) -> None:
    """Any trigger queues ``run``, and shows what it yields as it comes, until ``cancel``."""

    def stream(*values: object) -> Iterator[list[object]]:
        with shown_to_visitor():
            for note, pictures in run(*values):
                for drawn in filter(None, pictures):
                    # gradio names a file by its content and writes it in place: two visitors
                    # with the same picture would read what the other one is writing.
                    drawn.info["drawing"] = uuid.uuid4().hex
                yield [note, *pictures]

    event = gr.on(
        triggers,
        stream,
        inputs,
        outputs,
        concurrency_id=QUEUE,
        concurrency_limit=NUM_RUNNING,
        show_progress="hidden",
        api_visibility="private",
    )
    cancel.click(None, cancels=[event], api_visibility="private")


def picture(label: str, kind: str) -> gr.Image:
    """A place for a drawing that a model makes; ``kind`` is its class in app.CSS."""
    return gr.Image(
        label=label, interactive=False, format="png", buttons=["download"], elem_classes=kind
    )


def shown(
    canvases: Iterable[Tensor | None], columns: int | None = None
) -> list[Image.Image | None]:
    """A picture a model, for ``picture``: by default one row; none where nothing is drawn yet."""
    return [
        None if canvas is None else images.enlarge(images.grid(canvas, columns or len(canvas)))
        for canvas in canvases
    ]


def dials(models: Sequence[GenerativeModel], guidance: float = 1) -> list[gr.Component]:
    """Temperature, guidance, steps and seed, in ``options``' order, as far as a model has them."""
    used = set().union(*(model.honours for model in models))
    return [
        gr.Slider(0.1, 2, 1, step=0.05, label="Temperature", visible="temperature" in used),
        gr.Slider(0, 5, guidance, step=0.25, label="Guidance", visible="guidance" in used),
        gr.Slider(
            *(0, max_steps(models), 0),
            step=1,
            label="Steps",
            info="0: the model's own",
            visible="num_steps" in used,
        ),
        gr.Number(0, label="Seed"),
    ]


def max_steps(models: Sequence[GenerativeModel]) -> int:
    """As many steps as all of the models that draw in steps can take."""
    return min([MAX_STEPS, *(m.max_steps for m in models if "num_steps" in m.honours)])


def whole(name: str, value: float | None, low: int, high: int) -> int:
    """The number of a field, or ValueError where it is empty or out of its range."""
    if value is None or not low <= value <= high or value != int(value):
        raise ValueError(f"{name} is {value}, expected a whole number from {low} to {high}")
    return int(value)


def options(
    model: GenerativeModel, temperature: float | None, guidance: float | None, steps: float | None
) -> tuple[Sampling, list[str]]:
    """The options that a model honours, and the names of the changed ones that it does not.

    Args:
        steps: 0 stands for the model's own number.

    Raises:
        ValueError: an option that is empty or out of its range.
    """
    if temperature is None or guidance is None:
        raise ValueError("temperature or guidance is empty, expected a number")
    num_steps = whole("steps", steps, 0, MAX_STEPS) or None
    wanted = Sampling(temperature=temperature, guidance=guidance, num_steps=num_steps)
    used = {name: getattr(wanted, name) for name in wanted.changed() & model.honours}
    ignored = wanted.changed() - model.honours
    return Sampling(**used), sorted(name.removeprefix("num_") for name in ignored)


def together(streams: Iterable[Iterator[Canvas]]) -> Iterator[list[Canvas | None]]:
    """The latest canvas of every stream, a step of each in turn; the last list is finished."""
    latest: list[Canvas | None] = []
    sent, pending = 0.0, False
    for canvases in zip_longest(*streams):
        latest = latest or [None] * len(canvases)
        latest = [old if new is None else new for old, new in zip(latest, canvases, strict=True)]
        pending = time.monotonic() - sent < FRAME_SECONDS
        if not pending:
            yield latest
            sent = time.monotonic()
    if pending:
        yield latest
