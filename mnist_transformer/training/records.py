"""The main process's work between steps: reports, metrics.jsonl, TensorBoard and pictures."""

import json
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from mnist_transformer.data import Dataset, Split
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.training.info import RunInfo
from mnist_transformer.training.log import Record, in_words, plot_losses, read_metrics, validate
from mnist_transformer.training.runtime import uncompiled
from mnist_transformer.training.state import RunState, mix
from mnist_transformer.utils.files import write_atomic
from mnist_transformer.utils.images import grid, save_png

LOG_SECONDS = 5.0
REPORT_SECONDS = 0.5
VALIDATE_SECONDS = (20.0, 150.0)  # bounds of the interval, a fortieth of the run
VALIDATE_SHARE = 0.04  # of the run's time, at most
VALIDATE_IMAGES = 1_000
WINDOW = 50  # steps; a record's loss and speed are means over them
SAMPLES_PER_CLASS, MAX_CLASSES = 8, 20


@dataclass
class Records:
    """The records of a run; processes other than the main one only call ``tell``."""

    folder: Path
    state: RunState
    dataset: Dataset
    accelerator: Accelerator
    clock: Callable[[], float]
    report: Callable[[Record], None]
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # of steps
    bits_per_dim: float | None = None  # of the last validation

    def start(self) -> None:
        """Open the files, without lines about steps that will be repeated."""
        step, seconds = self.state.step, self.state.seconds
        self.path = self.folder / "metrics.jsonl"
        self.lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(x) + "\n" for x in self.lines).encode())
        options = {"tensorboard": {"purge_step": step}}
        self.accelerator.init_trackers("tensorboard", init_kwargs=options)
        self.last: dict[str, float] = defaultdict(lambda: seconds)
        self.validate_seconds = self._between_validations()

    def due(self, work: str, every: float) -> bool:
        """Whether work to be done every so many seconds of the run is due now."""
        if self.state.seconds - self.last[work] < every:
            return False
        self.last[work] = self.state.seconds
        return True

    def record(self, message: str | None = None) -> Record:
        state, losses, durations = self.state, self.losses, self.durations
        return Record(
            step=state.step,
            images=state.images_seen,
            seconds=state.seconds,
            progress=state.progress,
            loss=sum(losses) / len(losses) if losses else math.nan,
            bits_per_dim=self.bits_per_dim,
            images_per_second=state.recipe.batch_size * len(durations) / (sum(durations) or 1.0),
            seconds_left=state.seconds / state.progress - state.seconds if state.progress else None,
            message=message,
        )

    def tell(self, message: str) -> None:
        """Report a message to the user, whose terminal may be gone."""
        if self.accelerator.is_main_process:
            with suppress(OSError):
                self.report(self.record(message))

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Report errors inside and continue: no record is worth a run."""
        try:
            yield
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            self.tell(f"could not write the records: {error}")

    def keep(self) -> None:
        """Report, log and validate where due."""
        with self.spared():
            if self.due("report", REPORT_SECONDS):
                self.report(self.record())
            if self.due("log", LOG_SECONDS):
                record, group = self.record(), self.state.optimizers[0].param_groups[0]
                self._log(
                    "train",
                    loss=record.loss,
                    progress=round(record.progress, 5),
                    images_per_second=round(record.images_per_second, 2),
                    lr_factor=round(group["lr"] / group["peak_lr"], 4),
                )
            if self.state.progress < 1 and self.due("validate", self.validate_seconds):
                self.validate(self.dataset.val.part(0, VALIDATE_IMAGES))
                self.redraw(self.validate_seconds)
                took = self.clock() - self.state.zero - self.state.seconds
                self.validate_seconds = max(self._between_validations(), took / VALIDATE_SHARE)

    def validate(self, split: Split) -> dict[str, float | None]:
        """Validate on a split and report the figures."""
        with self.accelerator.autocast(), uncompiled(self.state.recipe):
            found = validate(self.state.averaged, split, mix(self.state.seed, 3))
        self.bits_per_dim = found["bits_per_dim"]
        self.tell(f"validation: {in_words(found)}")
        self._log("validation", **found)
        return found

    def redraw(self, limit: float = math.inf) -> None:
        """Draw the plot, and samples as far as ``limit`` seconds go; may raise OSError."""
        write_atomic(self.folder / "loss.png", plot_losses(self.lines))
        model = self.state.averaged
        if isinstance(model, GenerativeModel):
            labels = torch.arange(min(model.num_classes, MAX_CLASSES)).repeat(SAMPLES_PER_CLASS)
            until, drawing = self.clock() + limit, model.steps(labels, range(len(labels)))
            with self.accelerator.autocast(), uncompiled(self.state.recipe), closing(drawing):
                for images in drawing:
                    if self.clock() > until:
                        break
            save_png(grid(images, len(labels.unique()), gap=2), self.folder / "samples.png")

    def info(self) -> RunInfo:
        """Validate on the whole split and return the run's metadata."""
        state, validation = self.state, self.validate(self.dataset.val)
        bits = validation["bits_per_dim"]
        measured = "loss" if bits is None else "bits_per_dim"
        if bits is not None:
            bits = round(bits, 6) if math.isfinite(bits) else None
        found = [x for x in self.lines if x["kind"] == "validation"]
        found = [x for x in found if x.get(measured) is not None and math.isfinite(x[measured])]
        return RunInfo(
            recipe=state.recipe.name,
            dataset=self.dataset.spec.name,
            images_seen=state.images_seen,
            steps=state.step,
            seconds=round(state.seconds, 1),
            seed=state.seed,
            torch=torch.__version__,
            validation=in_words(validation),
            validation_bits_per_dim=bits,
            curve=tuple((x["seconds"], x["images"], round(x[measured], 5)) for x in found),
        )

    def _log(self, kind: str, **measured: float | None) -> None:
        state = self.state
        place = {"kind": kind, "step": state.step, "images": state.images_seen}
        self.lines.append({**place, "seconds": round(state.seconds, 2), **measured})
        known = {f"{kind}/{name}": value for name, value in measured.items() if value is not None}
        with self.spared():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.lines[-1]) + "\n")
            self.accelerator.log(known, step=state.step)

    def _between_validations(self) -> float:
        """Seconds, from the run's length, or for a run in epochs from its progress so far."""
        state, (least, most) = self.state, VALIDATE_SECONDS
        length = state.recipe.max_seconds or state.seconds / (state.progress or 1.0)
        return min(max(length / 40, least), most)
