"""The measurements of a training run: records, validation, metrics.jsonl, plot and terminal.

Each line of metrics.jsonl is a JSON object with ``kind`` "train" or "validation", the place in
the run (``step``, ``images``, ``seconds``) and its measurements. ``loss`` is the training
objective in both kinds; ``bits_per_dim`` is the likelihood of validation images.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.progress import TextColumn

from mnist_transformer.data import Split
from mnist_transformer.models.base import Model, in_batches, measured_at_once
from mnist_transformer.utils import trees
from mnist_transformer.utils.images import figure_png
from mnist_transformer.utils.terminal import LINE_SECONDS, bars, complain, errors

LOSS_IMAGES = 1_000  # whose loss is measured too where there is a likelihood
PANELS = {"loss": "loss per image", "bits_per_dim": "bits/dim of validation images"}
PLACE = {"kind", "step", "images", "seconds"}  # fields of every line
STYLES = {"train": "C0-", "validation": "C1o-"}
AXES = {"seconds": (1 / 60, "minutes"), "images": (1e-3, "thousand training images")}


@dataclass(frozen=True)
class Record:
    """One report of a training run.

    ``seconds`` count validation and saving, but neither the steps that a killed run lost nor the
    time until it was started again.
    """

    step: int
    images: int  # seen in training, counted with repetition
    seconds: float
    progress: float  # from 0 to 1
    loss: float  # the training objective per image, mean over the last steps
    bits_per_dim: float | None  # at the last validation, if there was one and a likelihood
    images_per_second: float  # of the last steps alone
    seconds_left: float | None  # at the pace so far; None before the first step
    message: str | None = None


def validate(model: Model, split: Split, seed: int) -> dict[str, float | None]:
    """Means over a split, in evaluation mode and the precision that the caller has set.

    A random loss draws the same random numbers, from ``seed``, at every call.

    Returns:
        ``loss``: the training objective.
        ``bits_per_dim``: over all dimensions; None for a model without a likelihood.
        ``num_images``, and the model's own figures.
    """
    torch.manual_seed(seed)
    images, cond = split.batch(torch.arange(len(split)))
    bits, some, at_once = None, slice(None), measured_at_once(images)
    if model.likelihood is not None:
        nats = in_batches(model, model.nll, images, cond, batch_size=at_once)
        bits, some = nats.mean().item() / (math.log(2) * images[0].numel()), slice(LOSS_IMAGES)
    if model.likelihood == "exact" and model.built_in_guidance == 1:
        losses = nats[some]  # see ``Model.likelihood``
    else:
        losses = in_batches(model, model.loss, images[some], cond[some], batch_size=at_once)
    found = {"loss": losses.mean().item(), "bits_per_dim": bits, "num_images": len(split)}
    return found | model.figures(images, cond)


def in_words(validation: Mapping[str, float | None]) -> str:
    """The likelihood, else the loss, and the model's own figures."""
    figures = dict(validation)
    loss, bits, num_images = (figures.pop(x) for x in ("loss", "bits_per_dim", "num_images"))
    said = [f"loss {loss:.4f}" if bits is None else f"{bits:.4f} bits/dim"]
    said += [f"{name} {value:.4g}" for name, value in figures.items()]
    return f"{', '.join(said)} on {num_images:,} images"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl, [] if none; a killed run may leave partial ones."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = (trees.parse(line) for line in text.splitlines())
    return [line for line in lines if isinstance(line, dict) and line.keys() >= PLACE]


def plot_losses(lines: Iterable[dict[str, Any]]) -> bytes:
    """PNG: a row of panels per quantity that was measured, by minutes and by training images."""
    from matplotlib.figure import Figure

    lines = list(lines)
    names = [x for x in PANELS if any(line.get(x) is not None for line in lines)] or ["loss"]
    figure = Figure(figsize=(10, 4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), len(AXES), squeeze=False)
    for name, row in zip(names, panels, strict=True):
        known = [line for line in lines if line.get(name) is not None]
        finite = sorted(filter(math.isfinite, (line[name] for line in known)))
        for axes, (place, (scale, unit)) in zip(row, AXES.items(), strict=True):
            for kind, style in STYLES.items():
                points = [(x[place] * scale, x[name]) for x in known if x["kind"] == kind]
                if points:
                    axes.plot(*zip(*points, strict=True), style, label=kind, lw=1, ms=3)
                if points and kind == "validation":
                    axes.annotate(f"{points[-1][1]:.4g}", points[-1], ha="right", va="bottom")
            if finite:
                # The first minute would squash all the rest.
                low, typical = finite[0], finite[len(finite) // 2]
                axes.set_ylim(low - 0.1 * (typical - low), low + 4 * max(typical - low, 1e-3))
                axes.legend()
            axes.set(xlabel=unit, ylabel=PANELS[name])
            axes.grid(alpha=0.3)
    return figure_png(figure)


@contextmanager
def training(name: str) -> Iterator[Callable[[Record], None]]:
    """A function that shows the records of a run: by a bar, or by lines without a terminal."""
    last_line = -math.inf
    with bars(TextColumn("{task.percentage:>3.0f}% {task.fields[figures]}")) as progress:
        # Shown by its first record, because only one of several processes reports.
        bar = progress.add_task(name, total=1.0, figures="", visible=False)

        def report(record: Record) -> None:
            nonlocal last_line
            parts = [] if math.isnan(record.loss) else [f"loss {record.loss:.4g}"]
            if record.bits_per_dim is not None:
                parts.append(f"validation {record.bits_per_dim:.3f} bits/dim")
            if record.images_per_second:
                parts.append(f"{record.images_per_second:.0f} images/s")
            if record.seconds_left is not None:
                parts.append(f"{timedelta(seconds=round(record.seconds_left))} left")
            figures = " · ".join(parts)
            progress.update(bar, completed=record.progress, figures=figures, visible=True)
            if record.message:
                complain(record.message)
            elif not errors.is_terminal and time.monotonic() - last_line >= LINE_SECONDS:
                last_line = time.monotonic()
                complain(f"{name} {record.progress:.0%} {figures}")

        yield report
