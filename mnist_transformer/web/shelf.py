"""The models that the demo draws with, loaded once, and what its tabs share."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import gradio as gr

import mnist_transformer
from mnist_transformer import checkpoint
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.sampling import Sampling

FRAME_SECONDS = 0.15  # pictures are sent to the browser at most this often

Canvas = TypeVar("Canvas")


@dataclass(frozen=True)
class Shelf:
    """Models that draw, by name, and one sentence about each that does not load."""

    models: dict[str, GenerativeModel]
    complaints: list[str] = field(default_factory=list)


def fill(paths: Mapping[str, Path]) -> Shelf:
    """Load what draws; now, so that the first picture need not wait for it.

    Raises:
        ValueError: none of the models can draw.
    """
    models, complaints = {}, []
    for name, path in paths.items():
        try:
            model = checkpoint.load(path)
            if isinstance(model, GenerativeModel):
                models[name] = mnist_transformer.to_device(model)
        except ValueError as error:
            complaints.append(f"{name} is left out: {error}")
    if not models:
        raise ValueError(f"no model to draw with: {'; '.join(complaints) or 'none is shipped'}")
    return Shelf(models, complaints)


@contextmanager
def shown_to_visitor() -> Iterator[None]:
    """A mistake is a sentence on the page."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def options(
    model: GenerativeModel, temperature: float, guidance: float, num_steps: int | None
) -> tuple[Sampling, list[str]]:
    """The options that a model honours, and the names of the changed ones that it does not.

    Raises:
        ValueError: an option out of its range.
    """
    wanted = Sampling(temperature=temperature, guidance=guidance, num_steps=num_steps)
    used = {name: getattr(wanted, name) for name in wanted.changed() & model.honours}
    return Sampling(**used), sorted(wanted.changed() - model.honours)


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
