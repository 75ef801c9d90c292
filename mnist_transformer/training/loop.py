"""The only training loop: on Hugging Face accelerate, for every model with a ``loss``.

Step s of a run is a function of the weights, the seed and s alone: its images come from
permutations drawn from (seed, epoch), and torch's random generator is seeded with (seed, s,
rank) before it. So a run that was killed goes on from its last state as if nothing had
happened, bit for bit where its length is given in epochs; where it is given in seconds, the
learning rates follow the clock.

Under ``accelerate launch --multi_gpu --num_processes N`` the images of a step are divided evenly
over the processes, so that the mean of their gradients is the gradient of one process with the
whole batch. What a model draws at random inside its loss is drawn by each process for itself.
On CPUs this needs ACCELERATE_USE_CPU=1 in the environment: accelerate's own ``--cpu`` starts
one process, unless under MPI.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from mnist_transformer.data import Dataset, load_dataset
from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import Model
from mnist_transformer.recipes import Recipe
from mnist_transformer.training import optim, runtime
from mnist_transformer.training import state as resume
from mnist_transformer.training.batches import Batches, mix
from mnist_transformer.training.log import (
    Clock,
    Record,
    RunLog,
    Validation,
    validate,
    validation_curve,
)
from mnist_transformer.utils.devices import fork_rng

__all__ = ["Record", "train"]

SAVE_SECONDS = 60.0
LOG_SECONDS = 5.0
REPORT_SECONDS = 0.5
VALIDATE_SECONDS = (20.0, 150.0)  # bounds on a fortieth of the run
VALIDATE_SHARE = 0.04  # of the run's time, at most
VALIDATE_IMAGES = 1_000
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
            as seconds of the run, a pause (Ctrl-Z) and the measurements after its last step do not.
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
    recipe = runtime.override(recipe, max_seconds, epochs, batch_size, lr)
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    accelerator = runtime.make_accelerator(out, device)
    dataset = data if isinstance(data, Dataset) else load_dataset(recipe.dataset, data)
    with fork_rng(accelerator.device):
        run = _Run(recipe, out, dataset, accelerator, seed, report, started)
        if run.finished:
            run.tell(f"this run is finished: {run.weights_path}")
            return run.weights_path
        run.start()
        try:
            with runtime.stop_signals(run.skip_pause) as stop:
                run.loop(stop)
            run.finish()
        finally:
            accelerator.end_training()
    return run.weights_path


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
        if recipe.batch_size % accelerator.num_processes:
            raise ValueError(
                f"batch_size is {recipe.batch_size}, expected a multiple of the "
                f"{accelerator.num_processes} processes"
            )
        torch.manual_seed(mix(seed, 2))
        self.model: Model = recipe.model.build()
        if not resume.find_states(out):  # a state holds its tokenizer
            runtime.give_tokenizer(self.model, recipe, out.parent)
        self.model.to(accelerator.device)
        self.data = dataset.train.to(accelerator.device)
        shape = tuple(self.data.images.shape[1:])
        if shape != self.model.image_shape:
            raise ValueError(f"images are {shape}, the model expects {self.model.image_shape}")
        self.val = dataset.val
        # What sums over pixels is trained a dimension, so that the gradient's norm, and with it
        # ``clip``, means the same whatever the size of the images.
        self.scale = 1 / math.prod(shape) if self.model.loss_sums_dims else 1.0
        self.batches = Batches(len(self.data), recipe.batch_size, seed)
        self.optimizers = optim.build_optimizers(self.model, recipe)
        self.ema = optim.EMA(self.model, recipe.ema) if recipe.ema else None
        self.identity = resume.identity(recipe, self.model, seed, len(self.data))
        self._restore()

    def _restore(self) -> None:
        tree, messages = resume.load_newest(self.out, self.identity)
        if tree is None:
            if self.weights_path.exists():
                raise ValueError(
                    f"{self.weights_path} exists but no state to go on from, expected a new folder"
                )
            return
        self.step = tree["step"]
        self.seconds = self.seconds_before = tree["seconds"]
        self.started = time.monotonic()
        self.model.load_state_dict(tree["model"])
        optim.load_optimizer_state(self.optimizers, tree["optimizers"])
        if self.ema:
            self.ema.num_updates = tree["ema"]["num_updates"]
            self.ema.model.load_state_dict(tree["ema"]["model"])
        for message in messages:
            self.tell(message)

    # --- where the run is ---

    @property
    def num_images(self) -> int:
        return self.step * self.recipe.batch_size

    @property
    def progress(self) -> float:
        if self.recipe.max_seconds is not None:
            return min(1.0, self.seconds / self.recipe.max_seconds)
        assert self.recipe.epochs is not None
        return min(1.0, self.num_images / (self.recipe.epochs * len(self.data)))

    @property
    def finished(self) -> bool:
        return self.progress >= 1 and self.weights_path.exists()

    @property
    def averaged(self) -> Model:
        """The weights that the run is about: averaged where the recipe says so."""
        return self.ema.model if self.ema else self.model

    def _now(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _between_validations(self) -> float:
        """Seconds, by the length of the run; of one in epochs as far as its progress tells."""
        length = self.recipe.max_seconds
        if length is None:
            length = self.seconds / self.progress if self.progress else 0.0
        least, most = VALIDATE_SECONDS
        return min(max(length / 40, least), most)

    def skip_pause(self) -> None:
        """Take what passed since the last step out of the clock: SIGSTOP or Ctrl-Z paused it."""
        self.started += max(0.0, self._now() - self.seconds)

    def record(self, message: str | None = None) -> Record:
        loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
        rate = left = None
        if self.durations:
            rate = self.recipe.batch_size * len(self.durations) / sum(self.durations)
        if self.recipe.max_seconds is not None:
            left = max(0.0, self.recipe.max_seconds - self.seconds)
        elif rate is not None and self.recipe.epochs is not None:
            left = max(0.0, (self.recipe.epochs * len(self.data) - self.num_images) / rate)
        return Record(
            step=self.step,
            images=self.num_images,
            seconds=self.seconds,
            progress=self.progress,
            loss=loss,
            bits_per_dim=loss * self.scale / math.log(2)
            if self.model.likelihood == "exact"
            else None,
            images_per_second=rate or 0.0,
            seconds_left=left,
            message=message,
        )

    def tell(self, message: str) -> None:
        if self.accelerator.is_main_process:
            self.report(self.record(message))

    # --- steps ---

    def start(self) -> None:
        """Set up what only a run with something left to do needs."""
        if self.step:
            self.tell(f"going on from step {self.step:,}")
        self.parallel = self.accelerator.prepare(self.model)
        self.validating = Clock(self._between_validations(), self.seconds)
        self.saving = Clock(SAVE_SECONDS, self.seconds)
        self.logging = Clock(LOG_SECONDS, self.seconds)
        self.reporting = Clock(REPORT_SECONDS, self.seconds)
        if self.accelerator.is_main_process:
            resume.drop_leftovers(self.out)
            self.log = RunLog(self.out, self.step, self.accelerator)

    def loop(self, stop: runtime.Stop) -> None:
        """Train to the end; raises KeyboardInterrupt or SystemExit when told to stop."""
        self.model.train()
        while self.progress < 1:
            begun = time.monotonic()
            stopped = self._step(stop)
            self.durations.append(time.monotonic() - begun)
            if self.accelerator.is_main_process:
                if self.saving.due(self.seconds) or stopped or self.progress >= 1:
                    self._save()
                self._keep_records()
            if stopped:
                self.tell(f"stopped at step {self.step:,}; the same command goes on from there")
                raise stop.exception()

    def _step(self, stop: runtime.Stop) -> bool:
        """One step of all processes; true if one of them was told to stop."""
        accelerator, recipe = self.accelerator, self.recipe
        share = recipe.batch_size // accelerator.num_processes
        first = accelerator.process_index * share
        chosen = self.batches(self.step)[first : first + share].to(accelerator.device)
        factor = optim.schedule(self.progress, recipe.warmup, recipe.decay)
        optim.set_rates(self.optimizers, factor)
        loss = self._forward(chosen).mean()
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
            self._skip(mean, norm)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        return stopped

    def _forward(self, chosen: Tensor) -> Tensor:
        torch.manual_seed(mix(self.seed, 1, self.step, self.accelerator.process_index))
        losses: Tensor = self.parallel(*self.data.batch(chosen))
        return losses

    def _agree(self, loss: float, stop: runtime.Stop) -> tuple[float, float, bool]:
        """Mean loss, the first process's clock, and whether any process was told to stop."""
        stopped = stop.signal is not None
        if self.accelerator.num_processes == 1:
            return loss, self._now(), stopped
        mine = torch.tensor([[loss, self._now(), float(stopped)]], device=self.accelerator.device)
        every = self.accelerator.gather(mine)
        return float(every[:, 0].mean()), float(every[0, 1]), bool(every[:, 2].any())

    def _skip(self, loss: float, norm: float) -> None:
        self.skipped += 1
        self.tell(f"step {self.step:,} skipped: loss {loss}, gradient norm {norm}")
        if self.skipped >= MAX_SKIPPED:
            raise ValueError(
                f"no finite loss and gradient in {MAX_SKIPPED} steps, expected some: "
                "training diverged, try a lower lr"
            )

    # --- records, in the main process ---

    def _save(self) -> None:
        """Save the state; a full disk leaves the one before and is no reason to stop."""
        ema = self.ema and {
            "num_updates": self.ema.num_updates,
            "model": self.ema.model.state_dict(),
        }
        tree = {
            "run": self.identity,
            "step": self.step,
            "seconds": self._now(),
            "model": self.model.state_dict(),
            "optimizers": optim.optimizer_state(self.optimizers),
            "ema": ema,
        }
        try:
            resume.save_newest(self.out, self.step, tree)
        except OSError as error:
            self.tell(f"could not save the state, the one before is kept: {error}")

    def _keep_records(self) -> None:
        """Report, log and validate where due."""
        try:
            if self.reporting.due(self.seconds):
                self.report(self.record())
            if self.logging.due(self.seconds):
                self._log_training()
            if self.progress < 1 and self.validating.due(self.seconds):
                self._log_validation(VALIDATE_IMAGES)
                self.log.redraw(self.averaged)
                took = self._now() - self.seconds
                every = self._between_validations()
                self.validating.every = max(every, took / VALIDATE_SHARE)
        except OSError as error:
            self.tell(f"could not write the records: {error}")

    def _log_training(self) -> None:
        record = self.record()
        group = self.optimizers[0].param_groups[0]
        measured = {
            "loss": record.loss,
            "bits_per_dim": record.bits_per_dim,
            "progress": round(record.progress, 5),
            "images_per_second": round(record.images_per_second, 2),
            "lr_factor": round(group["lr"] / group["peak_lr"], 4),
        }
        self.log.add("train", record, measured)

    def _log_validation(self, num_images: int) -> Validation:
        """Validate on the first images of the split, always the same ones."""
        model = self.averaged.eval()
        with self.accelerator.autocast():
            validation = validate(model, self.val.part(0, num_images), mix(self.seed, 3))
        record = self.record(f"validation: {validation}")
        self.report(record)
        self.log.add_validation(record, validation)
        self.model.train()
        return validation

    def finish(self) -> None:
        """Measure on the whole validation split and write the weights."""
        if self.accelerator.is_main_process:
            validation = self._log_validation(len(self.val))
            notes = {
                "recipe": self.recipe.name,
                "images": str(self.num_images),
                "steps": str(self.step),
                "seconds": f"{self.seconds:.1f}",
                "seed": str(self.seed),
                "torch": torch.__version__,
                "validation": str(validation),
                "curve": json.dumps(validation_curve(self.log.lines)),
            }
            if validation.bits_per_dim is not None:
                notes["validation_bits_per_dim"] = f"{validation.bits_per_dim:.6f}"
            checkpoint.save(self.averaged, self.weights_path, dtype=torch.float32, **notes)
            self.log.redraw(self.averaged)  # after the weights: samples can take minutes
            self.tell(f"finished: {self.weights_path}")
        self.accelerator.wait_for_everyone()
