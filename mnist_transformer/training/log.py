"""What a training run reports and leaves behind while it runs.

metrics.jsonl, TensorBoard's files, loss.png and, of a model that draws, samples.png.

Each line of metrics.jsonl is a JSON object with ``kind`` "train" or "validation", the place in
the run (``step``, ``images``, ``seconds``) and what was measured there.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mnist_transformer.data import Split
from mnist_transformer.models.base import GenerativeModel, Model
from mnist_transformer.utils.files import write_atomic
from mnist_transformer.utils.images import figure_png, grid, save_png

VALIDATION_BATCH = 250
SAMPLES_PER_CLASS = 8


@dataclass(frozen=True)
class Record:
    """One report of a training run.

    Args:
        step: steps made.
        images: training images seen, counted with repetition.
        seconds: duration of the run so far, validation and saving included; what a killed
            run did after its last save, and the time until it was started again, are not.
        progress: from 0 to 1.
        loss: mean over the last steps; nats an image where the loss is a likelihood.
        bits_per_dim: the same in bits a pixel; None where the loss is something else.
        images_per_second: of the steps alone, over the last ones.
        seconds_left: as far as can be told; None before the first step.
        message: something to tell the user once.
    """

    step: int
    images: int
    seconds: float
    progress: float
    loss: float
    bits_per_dim: float | None
    images_per_second: float
    seconds_left: float | None
    message: str | None = None


@dataclass(frozen=True)
class Validation:
    """Means over ``num_images`` images of the validation split, and the model's own figures."""

    loss: float
    bits_per_dim: float | None
    num_images: int
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        bits = self.bits_per_dim
        said = [f"loss {self.loss:.4f}" if bits is None else f"{bits:.4f} bits/dim"]
        said += [f"{name} {value:.4g}" for name, value in self.figures.items()]
        return f"{', '.join(said)} on {self.num_images:,} images"


@dataclass
class Clock:
    """When something is due next, in seconds of the run."""

    every: float
    last: float

    def due(self, seconds: float) -> bool:
        if seconds - self.last < self.every:
            return False
        self.last = seconds
        return True


class RunLog:
    """Appends to the records of a run in a folder and redraws its pictures.

    Args:
        folder: the run's own.
        step: where the run goes on; lines about later steps are dropped, as those steps
            will be made again.
        accelerator: whose TensorBoard tracker is written to as well.
    """

    def __init__(self, folder: Path, step: int, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.path = folder / "metrics.jsonl"
        self.lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(x) + "\n" for x in self.lines).encode())
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step}})

    def add(self, kind: str, record: Record, measured: Mapping[str, float | None]) -> None:
        """Append a line; raises OSError where the disk does."""
        place = {"step": record.step, "images": record.images, "seconds": round(record.seconds, 2)}
        line = {"kind": kind, **place, **measured}
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        known = {f"{kind}/{name}": value for name, value in measured.items() if value is not None}
        self.accelerator.log(known, step=record.step)

    def add_validation(self, record: Record, validation: Validation) -> None:
        """Append a line; raises OSError likewise."""
        measured = asdict(validation)
        self.add("validation", record, measured | measured.pop("figures"))

    def redraw(self, model: Model) -> None:
        """Draw the plot and the samples anew; raises OSError likewise."""
        write_atomic(self.folder / "loss.png", plot_losses(self.lines))
        if isinstance(model, GenerativeModel):
            labels = torch.arange(model.num_classes).repeat(SAMPLES_PER_CLASS)
            with self.accelerator.autocast():
                images = model.sample(labels, range(len(labels)))
            save_png(grid(images, model.num_classes, gap=2), self.folder / "samples.png")


def validate(model: Model, split: Split, seed: int) -> Validation:
    """Measure a model on a split, in the mode and precision that the caller has set.

    A loss that draws at random draws the same at every call, from ``seed``.
    """
    torch.manual_seed(seed)
    total, number = 0.0, len(split)
    with torch.inference_mode():
        for index in torch.arange(number).split(VALIDATION_BATCH):
            images, cond = (x.to(model.device) for x in split.batch(index))
            if model.likelihood is not None:
                losses = model.nll(images, cond)
            else:
                losses = model.loss(images, cond)
            total += float(losses.double().sum())
        figures = model.figures(*split.batch(torch.arange(number)))
    loss, bits = total / number, None
    if model.likelihood is not None:
        bits = loss / (math.log(2) * split.images[0].numel())
    return Validation(loss, bits, number, figures)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without what a killed run left half written; [] if none."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def validation_curve(lines: Iterable[dict[str, Any]]) -> list[tuple[float, int, float]]:
    """(seconds, images, bits/dim, or the loss where there are no bits) at each validation."""
    return [
        (
            x["seconds"],
            x["images"],
            round(x["loss"] if x["bits_per_dim"] is None else x["bits_per_dim"], 5),
        )
        for x in lines
        if x["kind"] == "validation"
    ]


def plot_losses(lines: Iterable[dict[str, Any]]) -> bytes:
    """PNG of training and validation loss, in bits/dim where known, by minutes and by images."""
    from matplotlib.figure import Figure

    lines = list(lines)
    unit = "bits_per_dim" if any(x.get("bits_per_dim") is not None for x in lines) else "loss"
    figure = Figure(figsize=(10, 4), layout="constrained")
    for column, (place, scale, label) in enumerate(
        [("seconds", 1 / 60, "minutes"), ("images", 1e-3, "thousand images")]
    ):
        axes = figure.add_subplot(1, 2, column + 1)
        for kind, style in [("train", "-"), ("validation", "o-")]:
            chosen = [x for x in lines if x["kind"] == kind and x.get(unit) is not None]
            values = [x[unit] for x in chosen]
            if not values:
                continue
            axes.plot([x[place] * scale for x in chosen], values, style, label=kind, lw=1, ms=3)
            if kind == "validation":
                axes.annotate(f"{values[-1]:.3f}", (chosen[-1][place] * scale, values[-1]))
        shown = [x[unit] for x in lines if x.get(unit) is not None and math.isfinite(x[unit])]
        if shown:
            # The first minute would squash all the rest.
            low, typical = min(shown), sorted(shown)[len(shown) // 2]
            axes.set_ylim(low - 0.1 * (typical - low), low + 4 * max(typical - low, 1e-3))
        axes.set_xlabel(label)
        axes.set_ylabel("bits/dim" if unit == "bits_per_dim" else "loss")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure_png(figure)
