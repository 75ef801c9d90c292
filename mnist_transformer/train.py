"""The only training loop: on Hugging Face accelerate, for every model with a ``loss``.

Step s of a run is a function of the weights, the seed and s alone: its images come from
permutations drawn from (seed, epoch), and torch's random generator is seeded with (seed, s,
rank) before it. So a run that was killed goes on from its last state as if nothing had
happened, bit for bit where its length is given in epochs; where it is given in seconds, the
learning rates follow the clock.

Under ``accelerate launch`` the images of a step are divided evenly over the processes, so that
the mean of the processes' gradients is the gradient of one process with the whole batch. What
a model draws at random inside its loss is drawn by each process for itself.
"""

import json
import math
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from mnist_transformer import checkpoint, optim
from mnist_transformer.data import Dataset, Split, load_dataset
from mnist_transformer.images import grid, save_png
from mnist_transformer.models.base import GenerativeModel, HasLikelihood, Model
from mnist_transformer.models.classifier import Classifier
from mnist_transformer.recipes import Recipe
from mnist_transformer.runlog import Record, RunLog, Validation
from mnist_transformer.transformer import fast_dtype

__all__ = ["Record", "train"]

SAVE_SECONDS = 60.0
LOG_SECONDS = 5.0
REPORT_SECONDS = 0.5
VALIDATE_SECONDS = (20.0, 150.0)  # bounds on a fortieth of the run
VALIDATE_SHARE = 0.04  # of the run's time, at most
VALIDATE_IMAGES = 1_000
VALIDATE_BATCH = 250
SAMPLES_PER_CLASS = 8
LOSS_WINDOW = 50  # steps
MAX_SKIPPED = 100  # steps in a row


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | Dataset | None = None,
    device: str | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    report: Callable[[Record], None] = lambda record: None,
) -> Path:
    """Train a recipe, or go on with it if ``out`` holds a part of the same run.

    Args:
        out: folder for everything: model.safetensors at the end; states to go on from,
            metrics.jsonl, loss.png, samples.png and tensorboard/ while it runs.
        data: the dataset's folder (see ``load_dataset``), or a dataset itself.
        device: such as "cpu", "cuda:1", "mps"; without it the best there is.
        max_seconds, epochs: length, in place of the recipe's; validation and saving count
            as seconds of the run, the measurements after its last step do not.
        batch_size: images a step over all processes, in place of the recipe's.
        lr: AdamW's peak rate in place of the recipe's; Muon's changes by the same factor.
        report: called in the main process, at most every half second and for messages.

    Returns:
        The path of the weights, averaged ones where the recipe averages.

    Raises:
        ValueError: an argument, the data or the folder's content is wrong, or training diverged.
        KeyboardInterrupt: Ctrl-C; the state was saved. SIGTERM raises SystemExit likewise.
        OSError: the folder cannot be written.
    """
    started = time.monotonic()
    recipe = override(recipe, max_seconds, epochs, batch_size, lr)
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(out, device)
    dataset = data if isinstance(data, Dataset) else load_dataset(recipe.dataset, data)
    on_device = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_device):
        run = _Run(recipe, out, dataset, accelerator, seed, report, started)
        if run.progress >= 1 and run.weights_path.exists():
            run.tell(f"this run is finished: {run.weights_path}")
            return run.weights_path
        with stop_signals() as stop:
            run.loop(stop)
        run.finish()
    accelerator.end_training()
    return run.weights_path


def override(
    recipe: Recipe,
    max_seconds: float | None,
    epochs: float | None,
    batch_size: int | None,
    lr: float | None,
) -> Recipe:
    """The recipe with the values that are given in place of its own; ValueError if senseless."""
    if max_seconds is not None and epochs is not None:
        raise ValueError(
            f"got max_seconds {max_seconds} and epochs {epochs}, expected at most one of them"
        )
    if max_seconds is not None or epochs is not None:
        recipe = replace(recipe, max_seconds=max_seconds, epochs=epochs)
    if batch_size is not None:
        recipe = replace(recipe, batch_size=batch_size)
    if lr is not None:
        factor = lr / recipe.adamw_lr
        recipe = replace(recipe, adamw_lr=lr, muon_lr=recipe.muon_lr * factor)
    if (recipe.max_seconds is None) == (recipe.epochs is None):
        raise ValueError(
            f"recipe {recipe.name} has max_seconds {recipe.max_seconds} and epochs "
            f"{recipe.epochs}, expected exactly one of them"
        )
    for name in ("max_seconds", "epochs", "batch_size", "adamw_lr", "muon_lr"):
        value = getattr(recipe, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, expected a finite number above 0")
    return recipe


def make_accelerator(out: Path, device: str | None) -> Accelerator:
    """An accelerator for a device, in bf16 where that is fast there.

    accelerate keeps one global state a process; a second run in it may want another device.
    """
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    before = os.environ.get("ACCELERATE_TORCH_DEVICE")
    if device is not None and not torch.distributed.is_initialized():
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(_check_device(device))
    try:
        chosen = PartialState(cpu=cpu).device
    finally:
        if before is None:
            os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        else:
            os.environ["ACCELERATE_TORCH_DEVICE"] = before
    return Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if fast_dtype(chosen) == torch.bfloat16 else "no",
        log_with="tensorboard",
        project_dir=out,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def _check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by its build
        reason = str(error).splitlines()[0]
        raise ValueError(f"device is {name!r}, expected one that is here ({reason})") from error
    return device


@dataclass
class Stop:
    """The signal that asked the run to stop, if one did."""

    signal: int | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Let the step be finished on SIGINT and SIGTERM; a second SIGINT interrupts at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                before[number] = signal.signal(number, handle)
            except ValueError:  # not in the main thread, which alone may set handlers
                break
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mix(*numbers: int) -> int:
    """A seed for torch from several numbers, 0 or more each."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Batches:
    """Which images step s uses: the run's permutations one after another, cut to batches."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """int64 (batch_size,)."""
        place, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while place < end:
            epoch, first = divmod(place, self.num_images)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(mix(self.seed, 0, epoch))
                self._order = torch.randperm(self.num_images, generator=generator)
                self._epoch = epoch
            parts.append(self._order[first : first + end - place])
            place += len(parts[-1])
        return torch.cat(parts)


@dataclass
class _Clock:
    """When something is due next, in seconds of the run."""

    every: float
    last: float = field(default=0.0)

    def due(self, seconds: float) -> bool:
        return seconds - self.last >= self.every


class _Run:
    """The state of a run: everything that changes from step to step."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        dataset: Dataset,
        accelerator: Accelerator,
        seed: int,
        report: Callable[[Record], None],
        started: float,
    ) -> None:
        self.recipe, self.out, self.accelerator, self.seed = recipe, out, accelerator, seed
        self.report, self.started = report, started
        self.weights_path = out / "model.safetensors"
        self.step = self.skipped = 0
        self.seconds = self.seconds_before = 0.0
        self.losses: deque[float] = deque(maxlen=LOSS_WINDOW)
        self.durations: deque[float] = deque(maxlen=LOSS_WINDOW)

        num_processes = accelerator.num_processes
        if recipe.batch_size % num_processes:
            raise ValueError(
                f"batch_size is {recipe.batch_size}, expected a multiple of the "
                f"{num_processes} processes"
            )
        torch.manual_seed(mix(seed, 2))
        self.model: Model = recipe.model.build().to(accelerator.device)
        if isinstance(self.model, GenerativeModel):
            shape = tuple(dataset.train.images.shape[1:])
            if shape != self.model.image_shape:
                raise ValueError(
                    f"the dataset's images are {shape}, the model expects {self.model.image_shape}"
                )
        self.images = dataset.train.images.to(accelerator.device)
        self.labels = dataset.train.labels.to(accelerator.device)
        self.val = dataset.val
        # A likelihood is trained in nats a dimension, so that the gradient's norm, and with it
        # ``clip``, means the same whatever the size of the images.
        dims = self.images[0].numel()
        self.scale = 1 / dims if isinstance(self.model, HasLikelihood) else 1.0
        self.batches = Batches(len(self.images), recipe.batch_size, seed)
        self.optimizers = optim.build_optimizers(self.model, recipe)
        self.ema = optim.EMA(self.model, recipe.ema) if recipe.ema else None
        messages = self._restore()
        compiling = _compile(self.model) if getattr(recipe, "compile", False) else None
        self.parallel = accelerator.prepare(self.model)

        interval = VALIDATE_SECONDS[1]
        if recipe.max_seconds is not None:
            interval = min(max(recipe.max_seconds / 40, VALIDATE_SECONDS[0]), interval)
        self.validating = _Clock(interval, self.seconds)
        self.saving = _Clock(SAVE_SECONDS, self.seconds)
        self.logging = _Clock(LOG_SECONDS, self.seconds)
        self.reporting = _Clock(REPORT_SECONDS, self.seconds)
        if accelerator.is_main_process:
            for leftover in out.glob(".*.safetensors.*"):
                leftover.unlink()
            self.log = RunLog(out, self.step)
            accelerator.init_trackers(
                "tensorboard", init_kwargs={"tensorboard": {"purge_step": self.step}}
            )
        for message in [*messages, compiling]:
            if message:
                self.tell(message)

    # --- progress and reports ---

    @property
    def num_images(self) -> int:
        return self.step * self.recipe.batch_size

    @property
    def progress(self) -> float:
        if self.recipe.max_seconds is not None:
            return min(1.0, self.seconds / self.recipe.max_seconds)
        assert self.recipe.epochs is not None
        return min(1.0, self.num_images / (self.recipe.epochs * len(self.images)))

    def _now(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def record(self, message: str | None = None) -> Record:
        loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
        rate = 0.0
        if self.durations:
            rate = self.recipe.batch_size * len(self.durations) / sum(self.durations)
        left = None
        if self.recipe.max_seconds is not None:
            left = max(0.0, self.recipe.max_seconds - self.seconds)
        elif rate and self.recipe.epochs is not None:
            left = max(0.0, (self.recipe.epochs * len(self.images) - self.num_images) / rate)
        return Record(
            step=self.step,
            images=self.num_images,
            seconds=self.seconds,
            progress=self.progress,
            loss=loss,
            bits_per_dim=self._bits(loss),
            images_per_second=rate,
            seconds_left=left,
            message=message,
        )

    def tell(self, message: str) -> None:
        if self.accelerator.is_main_process:
            self.report(self.record(message))

    def _bits(self, nats: float) -> float | None:
        return nats * self.scale / math.log(2) if isinstance(self.model, HasLikelihood) else None

    # --- steps ---

    def loop(self, stop: Stop) -> None:
        """Train to the end; raises KeyboardInterrupt or SystemExit when told to stop."""
        self.model.train()
        while self.progress < 1:
            begun = time.monotonic()
            stopped = self._step(stop)
            self.durations.append(time.monotonic() - begun)
            if self.accelerator.is_main_process:
                if stopped or self.progress >= 1 or self.saving.due(self.seconds):
                    self._save()
                self._keep_records()
            if stopped:
                self.tell(f"stopped at step {self.step:,}; the same command goes on from there")
                self.accelerator.end_training()
                if stop.signal == signal.SIGTERM:
                    raise SystemExit(128 + signal.SIGTERM)
                raise KeyboardInterrupt

    def _step(self, stop: Stop) -> bool:
        """One step of all processes; true if one of them was told to stop."""
        accelerator, recipe = self.accelerator, self.recipe
        share = recipe.batch_size // accelerator.num_processes
        rank = accelerator.process_index
        chosen = self.batches(self.step)[rank * share : (rank + 1) * share].to(self.images.device)
        images, labels = self.images[chosen], self.labels[chosen]
        optim.set_rates(self.optimizers, optim.schedule(self.progress, recipe.warmup, recipe.decay))
        loss = self._forward(images, labels).mean()
        accelerator.backward(loss * self.scale)
        norm = float(accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip))
        mean, self.seconds, stopped = self._agree(float(loss.detach()), stop)
        if math.isfinite(mean) and math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            if self.ema:
                self.ema.update(self.model)
            self.losses.append(mean)
            self.skipped = 0
        else:
            self.skipped += 1
            self.tell(f"step {self.step:,} skipped: loss {mean}, gradient norm {norm}")
            if self.skipped >= MAX_SKIPPED:
                raise ValueError(
                    f"training diverged: no finite loss and gradient in {MAX_SKIPPED} steps; "
                    "expected some at a lower lr"
                )
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        return stopped

    def _forward(self, images: Tensor, labels: Tensor) -> Tensor:
        seed = mix(self.seed, 1, self.step, self.accelerator.process_index)
        torch.manual_seed(seed)
        try:
            losses: Tensor = self.parallel(images, labels)
        except TorchDynamoException as error:
            self.model._compiled_call_impl = None
            self.tell(f"training uncompiled: {str(error).strip().splitlines()[0]}")
            torch.manual_seed(seed)
            losses = self.parallel(images, labels)
        return losses

    def _agree(self, loss: float, stop: Stop) -> tuple[float, float, bool]:
        """Mean loss, the first process's clock, and whether any process was told to stop."""
        stopped = stop.signal is not None
        if self.accelerator.num_processes == 1:
            return loss, self._now(), stopped
        mine = torch.tensor([[loss, self._now(), float(stopped)]], device=self.images.device)
        every = self.accelerator.gather(mine)
        return float(every[:, 0].mean()), float(every[0, 1]), bool(every[:, 2].any())

    # --- records ---

    def _keep_records(self) -> None:
        """Main process: report, log and validate where due. A full disk is no reason to stop."""
        try:
            if self.reporting.due(self.seconds):
                self.reporting.last = self.seconds
                self.report(self.record())
            if self.logging.due(self.seconds):
                self.logging.last = self.seconds
                self._log_training()
            if self.validating.due(self.seconds) and self.progress < 1:
                self._log_validation(VALIDATE_IMAGES)
                took = self._now() - self.seconds
                self.validating.every = max(self.validating.every, took / VALIDATE_SHARE)
                self.validating.last = self.seconds
        except OSError as error:
            self.tell(f"could not write the records: {error}")

    def _log_training(self) -> None:
        record = self.record()
        rate = self.optimizers[0].param_groups[0]
        measured = {
            "loss": record.loss,
            "bits_per_dim": record.bits_per_dim,
            "progress": round(record.progress, 5),
            "images_per_second": round(record.images_per_second, 2),
            "lr_factor": round(rate["lr"] / rate["peak_lr"], 4),
        }
        self.log.add("train", record, **measured)
        self._to_tensorboard("train", measured)

    def _log_validation(self, num_images: int) -> Validation:
        validation = self.validate(num_images)
        record = self.record(f"validation: {validation}")
        self.report(record)
        self.log.add_validation(record, validation)
        self._to_tensorboard("validation", asdict(validation))
        self.log.plot()
        self._draw_samples()
        return validation

    def _to_tensorboard(self, kind: str, values: dict[str, Any]) -> None:
        known = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
        self.accelerator.log(known, step=self.step)

    @property
    def averaged(self) -> Model:
        """The weights that the run is about: averaged where the recipe says so."""
        return self.ema.model if self.ema else self.model  # type: ignore[return-value]

    def validate(self, num_images: int) -> Validation:
        """Measure on the first images of the validation split, always the same ones."""
        model, split = (
            self.averaged,
            Split(self.val.images[:num_images], self.val.labels[:num_images]),
        )
        torch.manual_seed(mix(self.seed, 3))
        model.eval()
        total, right = 0.0, 0
        with torch.inference_mode(), self.accelerator.autocast():
            for images, labels in zip(
                split.images.split(VALIDATE_BATCH), split.labels.split(VALIDATE_BATCH), strict=True
            ):
                images, labels = images.to(self.images.device), labels.to(self.labels.device)
                if isinstance(model, HasLikelihood):
                    losses = model.nll(images, labels).nats
                else:
                    losses = model.loss(images, labels)
                total += float(losses.double().sum())
                if isinstance(model, Classifier):
                    right += int((model.logits(images).argmax(-1) == labels).sum())
        self.model.train()
        number = len(split.labels)
        loss = total / number
        accuracy = right / number if isinstance(model, Classifier) else None
        return Validation(loss, self._bits(loss), accuracy, number)

    def _draw_samples(self) -> None:
        model = self.averaged
        if not isinstance(model, GenerativeModel):
            return
        labels = torch.arange(model.num_classes).repeat(SAMPLES_PER_CLASS)
        with self.accelerator.autocast():
            images = model.sample(labels, range(len(labels)))
        self.model.train()
        save_png(grid(images, model.num_classes, gap=2), self.out / "samples.png")

    # --- states ---

    def _identity(self) -> dict[str, Any]:
        """What makes two runs the same one, as JSON has it."""
        recipe = {f.name: getattr(self.recipe, f.name) for f in fields(self.recipe)}
        for name in ("model", "about", "compile"):
            recipe.pop(name, None)
        identity = {
            **recipe,
            "family": checkpoint.family_of(self.model),
            **{f"model.{name}": value for name, value in asdict(self.recipe.model).items()},
            "seed": self.seed,
            "num_train": len(self.images),
        }
        return dict(json.loads(json.dumps(identity)))

    def _save(self) -> None:
        """Write a state and drop all but the last two. A full disk leaves those."""
        self.saving.last = self.seconds
        tree = {
            "run": self._identity(),
            "step": self.step,
            "seconds": self._now(),
            "model": self.model.state_dict(),
            "optimizers": optim.optimizer_state(self.optimizers),
            "ema": self.ema
            and {"num_updates": self.ema.num_updates, "model": self.ema.model.state_dict()},
        }
        try:
            checkpoint.save_state(self.out / f"state-{self.step:09d}.safetensors", tree)
            ours = [p for p in _states(self.out) if _step_of(p) <= self.step][:2]
            for path in _states(self.out):
                if path not in ours:
                    path.unlink()
        except OSError as error:
            self.tell(f"could not save the state, the one before is kept: {error}")

    def _restore(self) -> list[str]:
        """Go on from the newest state that can be read; returns what the user should know."""
        messages = []
        paths = _states(self.out)
        for path in paths:
            try:
                tree = checkpoint.load_state(path)
            except ValueError as error:
                messages.append(f"{error}; trying the state before")
                continue
            self._check_identity(tree["run"])
            self.step = tree["step"]
            self.seconds = self.seconds_before = tree["seconds"]
            self.started = time.monotonic()
            self.model.load_state_dict(tree["model"])
            optim.load_optimizer_state(self.optimizers, tree["optimizers"])
            if self.ema:
                self.ema.num_updates = tree["ema"]["num_updates"]
                self.ema.model.load_state_dict(tree["ema"]["model"])
            return [*messages, f"going on from step {self.step:,}"]
        if paths:
            raise ValueError(f"no state in {self.out} can be read, expected one of {len(paths)}")
        if self.weights_path.exists():
            raise ValueError(
                f"{self.weights_path} exists without a state to go on from, expected another folder"
            )
        return messages

    def _check_identity(self, theirs: dict[str, Any]) -> None:
        ours = self._identity()
        different = [k for k in sorted(ours | theirs) if ours.get(k) != theirs.get(k)]
        if different:
            first = different[0]
            raise ValueError(
                f"{self.out} holds another run: {first} is {theirs.get(first)!r} there and "
                f"{ours.get(first)!r} here, expected another folder or the same recipe"
            )

    def finish(self) -> None:
        """Measure on the whole validation split and write the weights."""
        if self.accelerator.is_main_process:
            validation = self._log_validation(len(self.val.labels))
            notes = {
                "recipe": self.recipe.name,
                "images": str(self.num_images),
                "steps": str(self.step),
                "seconds": f"{self.seconds:.1f}",
                "seed": str(self.seed),
                "torch": torch.__version__,
                "validation": str(validation),
            }
            if validation.bits_per_dim is not None:
                notes["validation_bits_per_dim"] = f"{validation.bits_per_dim:.6f}"
            checkpoint.save(self.averaged, self.weights_path, dtype=torch.float32, **notes)
            self.tell(f"finished: {self.weights_path}")
        self.accelerator.wait_for_everyone()


def _states(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    return sorted(folder.glob("state-*.safetensors"), key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("state-"))


def _compile(model: Model) -> str | None:
    """Compile in place; returns why not."""
    if model.device.type == "cpu" and not any(
        map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])
    ):
        return "training uncompiled: there is no C++ compiler here"
    model.compile()
    return None
