"""The only training loop: on Hugging Face accelerate, for every model with a ``loss``.

Step s of a run is a function of the weights, the seed and s alone: its images come from
permutations drawn from (seed, epoch), and (seed, s, rank) seeds torch's random generator. So a
killed run resumes from its last state as if nothing had happened: bit for bit if its length is
given in epochs; if it is given in seconds, the learning rates follow the clock.

Under ``accelerate launch --multi_gpu --num_processes N`` the processes share the images of a
step evenly, so the mean of their gradients is the gradient of the whole batch. Random numbers
inside the loss differ between processes. On CPUs this needs ACCELERATE_USE_CPU=1 in the
environment: accelerate's own ``--cpu`` starts one process, unless under MPI.
"""

import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import mkdtemp

import torch
from accelerate import Accelerator
from torch import Tensor

from mnist_transformer.data import Dataset, load_dataset
from mnist_transformer.models import checkpoint
from mnist_transformer.options import check_seed
from mnist_transformer.recipes import Recipe, find_recipe
from mnist_transformer.training import optim, runtime
from mnist_transformer.training import state as resume
from mnist_transformer.training.log import Record
from mnist_transformer.training.records import Records
from mnist_transformer.utils.checks import check_below, lacks_memory
from mnist_transformer.utils.devices import fork_rng
from mnist_transformer.utils.files import make_folder

SAVE_SECONDS = 60.0
MAX_SKIPPED = 100  # steps in a row


def train(
    recipe: str | Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | Dataset | None = None,
    device: str | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    report: Callable[[Record], None] = lambda record: None,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Train a recipe, given or by name; resume if ``out`` holds a part of the same run.

    Args:
        out: folder for everything, by default runs/ and the recipe's name: model.safetensors at
            the end; states to resume from, metrics.jsonl, loss.png, samples.png and tensorboard/
            while it runs.
        data: the dataset's folder (see ``load_dataset``), or a dataset itself.
        device: such as "cpu", "cuda:1", "mps"; by default the best available.
        max_seconds, epochs: length, in place of the recipe's. Validation and saving count as
            seconds; pauses (Ctrl-Z), compiling and the measurements after the last step do not.
        batch_size: images per step over all processes, in place of the recipe's.
        lr: AdamW's peak rate in place of the recipe's; Muon's changes by the same factor.
        report: called in the main process, at most every half second and for messages.
        clock: seconds that never go back, such as ``time.process_time`` for CPU seconds.

    Returns:
        The path of the weights, averaged if the recipe averages.

    Raises:
        ValueError: an argument, the data or the folder's content is wrong, or training diverged.
        KeyboardInterrupt: Ctrl-C; the state was saved. SIGTERM and SIGHUP raise SystemExit
            likewise.
        OSError: the folder cannot be written.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = runtime.override(recipe, max_seconds, epochs, batch_size, lr)
    check_seed(seed)
    out = Path(out or Path("runs") / recipe.name)
    make_folder(out)
    accelerator = runtime.make_accelerator(out, device)
    dataset = data if isinstance(data, Dataset) else load_dataset(recipe.dataset, data)
    if callable(recipe.model):  # a recipe for any data, however little
        few = min(recipe.batch_size, len(dataset.train)) if batch_size is None else batch_size
        recipe = replace(recipe, model=recipe.model(dataset.spec), batch_size=few)
    elif recipe.model.data.name == recipe.dataset != dataset.spec.name:
        # A copy that differs, as JPEG does: checkpoints and the ledger record its name.
        recipe = replace(recipe, model=replace(recipe.model, data=dataset.spec))
    claimed = runtime.claim(out) if accelerator.is_main_process else nullcontext()
    with claimed, fork_rng(accelerator.device), runtime.quiet_writer():
        run = _Run(recipe, out, dataset, accelerator, clock, seed, report)
        if run.is_finished:
            run.records.tell(f"this run is finished: {run.weights_path}")
            return run.weights_path
        run.start()
        try:
            with runtime.stop_signals(run.start_clock) as stop:
                run.loop(stop)
            run.finish()
        except (RuntimeError, MemoryError) as error:
            reason = str(error).partition("\n")[0] or "out of memory"
            if accelerator.num_processes == 1 and not lacks_memory(error):
                raise
            wrong = f"a process failed, or batch_size {recipe.batch_size} is too large ({reason})"
            raise ValueError(f"{wrong}; the same command resumes from the last state") from error
        finally:
            with run.records.spared():
                accelerator.end_training()
    return run.weights_path


class _Run:
    """A run: its state, its records, and the loop over its steps."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        dataset: Dataset,
        accelerator: Accelerator,
        clock: Callable[[], float],
        seed: int,
        report: Callable[[Record], None],
    ) -> None:
        self.out, self.accelerator, self.clock = out, accelerator, clock
        self.weights_path = out / "model.safetensors"
        wrong = f"batch_size is {recipe.batch_size}, expected"
        if recipe.batch_size % accelerator.num_processes:
            raise ValueError(f"{wrong} a multiple of the {accelerator.num_processes} processes")
        if recipe.batch_size > len(dataset.train):
            raise ValueError(f"{wrong} at most the {len(dataset.train):,} training images")
        torch.manual_seed(resume.mix(seed, 2))
        model = recipe.model.build().to(accelerator.device)
        if not resume.find_states(out):  # a state holds its tokenizer
            runtime.give_tokenizer(model, recipe, out.parent)
            model.start()
        self.data = dataset.train.to(accelerator.device)
        shape = tuple(self.data.images.shape[1:])
        if shape != model.image_shape:
            raise ValueError(f"images are {shape}, the model expects {model.image_shape}")
        if self.data.labels.ndim == 1:  # not answers to prompts
            check_below("label", self.data.labels, model.num_classes)
        # Per dimension, so that ``clip`` means the same whatever the size of the images.
        self.scale = 1 / math.prod(shape) if model.likelihood else 1.0
        self.state = resume.RunState(recipe, len(self.data), seed, model)
        self.records = Records(out, self.state, dataset, accelerator, clock, report)
        resumed = resume.load_newest(self.state, out, self.records.tell)
        self.is_finished = resume.is_finished(self.state, self.weights_path)
        if self.weights_path.exists() and not resumed and not self.is_finished:
            wrong = f"{self.weights_path} exists without a state to resume from"
            raise ValueError(f"{wrong}, expected a new folder")

    def start_clock(self) -> None:
        """Count seconds from now on, without those of the setup or of a pause (Ctrl-Z)."""
        self.state.zero = self.clock() - self.state.seconds

    def start(self) -> None:
        """Prepare the first step."""
        if self.state.step:
            self.records.tell(f"resuming from step {self.state.step:,}")
        self.parallel = self.accelerator.prepare(self.state.model)
        self.state.model.train()
        if self.state.recipe.compile and self.state.progress < 1:
            self.records.tell("compiling for some minutes, before the run's time begins")
            if wrong := runtime.try_to_compile(self.state.model):
                self.records.tell(f"not compiled, so training is slower: {wrong}")
            else:  # a step that leaves the weights and buffers as they were
                before = deepcopy(self.state.model.state_dict())
                self.backward()
                self.state.model.zero_grad()
                self.state.model.load_state_dict(before)
        if self.accelerator.is_main_process:
            resume.drop_leftovers(self.out)
            self.records.start()

    def loop(self, stop: list[int]) -> None:
        """Train to the end; raises KeyboardInterrupt or SystemExit once a signal is in ``stop``."""
        accelerator, clock, state, records = self.accelerator, self.clock, self.state, self.records
        recipe, num_skipped = state.recipe, 0
        self.start_clock()
        while state.progress < 1:
            begun = clock()
            factor = optim.schedule(state.progress, recipe.warmup, recipe.decay)
            optim.set_rates(state.optimizers, factor)
            loss = self.backward()
            norm = float(accelerator.clip_grad_norm_(state.model.parameters(), recipe.clip))
            mean, state.seconds, stopped = runtime.agree(
                accelerator, float(loss.detach()), clock() - state.zero, bool(stop)
            )
            if math.isfinite(mean) and math.isfinite(norm):
                state.update()
                records.losses.append(mean)
                num_skipped = 0
            else:
                records.tell(f"step {state.step:,} skipped: loss {mean}, gradient norm {norm}")
                num_skipped += 1
            if num_skipped >= MAX_SKIPPED:
                wrong = f"no finite loss and gradient in {MAX_SKIPPED} steps, expected some"
                raise ValueError(f"{wrong}: training diverged, try a lower lr")
            state.model.zero_grad()
            state.step += 1
            records.durations.append(clock() - begun)
            if accelerator.is_main_process:
                if records.due("save", SAVE_SECONDS) or stopped or state.progress >= 1:
                    try:
                        resume.save(state, self.out)
                    except OSError as error:  # a full disk does not end a run
                        records.tell(f"could not save the state, the one before is kept: {error}")
                records.keep()
            if stopped:
                records.tell(f"stopped at step {state.step:,}; the same command resumes from there")
                ends = [number for number in stop if number != signal.SIGINT]
                raise SystemExit(128 + ends[0]) if ends else KeyboardInterrupt

    def backward(self) -> Tensor:
        """The mean loss of this process's share of the step's images, and its gradient."""
        state, process = self.state, self.accelerator.process_index
        chosen = resume.images_of(state.step, len(self.data), state.recipe.batch_size, state.seed)
        chosen = chosen.chunk(self.accelerator.num_processes)[process]
        torch.manual_seed(resume.mix(state.seed, 1, state.step, process))
        loss: Tensor = self.parallel(*self.data.batch(chosen.to(self.accelerator.device))).mean()
        self.accelerator.backward(loss * self.scale)
        return loss

    def finish(self) -> None:
        """Validate on the whole split and write the weights, elsewhere if the disk refuses."""
        if self.accelerator.is_main_process:
            records, model = self.records, self.state.averaged
            notes = asdict(records.info()) | {"run": self.state.identity()}
            try:
                path = self.weights_path
                resume.with_room(path, lambda: checkpoint.save(model, path, **notes))
            except OSError as error:
                records.tell(f"could not write the weights here: {error}")
                self.weights_path = Path(mkdtemp(prefix="mnist-transformer-"), path.name)
                checkpoint.save(model, self.weights_path, **notes)
            with records.spared():  # after the weights: samples can take minutes
                records.redraw()
            records.tell(f"finished: {self.weights_path}")
        self.accelerator.wait_for_everyone()
