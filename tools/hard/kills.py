"""Runs that are killed at random moments, then resumed: do they end in the same weights?

A run saves its state after every step, so that many moments are in the middle of saving. Each part
of a run is a fork of this process, which spares it the imports, and SIGKILL ends it as it would
end any other.
"""

import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from mnist_transformer.data import Dataset, Split
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.models import checkpoint
from mnist_transformer.recipes import GENERIC, Recipe
from mnist_transformer.training import loop
from mnist_transformer.training import state as resume
from mnist_transformer.utils.terminal import complain
from tools.hard import SECONDS, TRACEBACK, Lines

SPEC = replace(
    MNIST, name="hard-use", shape=(1, 8, 8), class_names=("a", "b", "c"), num_levels=4, judge=None
)
MODEL = replace(
    GENERIC["patch"].model(SPEC),
    dim=16,
    depth=1,
    num_heads=2,
    mlp_dim=32,
    margin=2,
    gate_width=16,
    head_width=16,
    head_depth=1,
    head_mlp_dim=32,
)
RECIPE = Recipe("hard-use", MODEL, dataset="hard-use", batch_size=8, epochs=4, ema=0.2)
STEP, SAVING, FINISHING = "a step", "saving", "finishing"
MOMENTS = (STEP, SAVING, FINISHING)
SAVING_SECONDS = 0.005  # about as long as a state takes


def make_data(num_train: int = 80) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 4, (num_train + 20, 1, 8, 8), generator=generator).to(torch.uint8)
    images[torch.rand(images.shape, generator=generator) < 0.5] = 0
    split = Split(images, torch.arange(len(images)) % 3)
    rest = split.part(num_train, len(split))
    return Dataset(split.part(0, num_train), rest, rest, SPEC)


class Life:
    """One part of a run, in a process of its own; ``moment`` tells what it is doing."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._shared = mmap.mmap(-1, 1)  # a byte that both processes see
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            self._live(folder, log)

    @property
    def moment(self) -> str:
        return MOMENTS[self._shared[0]]

    def _live(self, folder: Path, log: Path) -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        save, finish = resume.save, loop._Run.finish

        def saving(state: resume.RunState, folder: Path) -> None:
            self._shared[0] = MOMENTS.index(SAVING)
            save(state, folder)
            self._shared[0] = MOMENTS.index(STEP)

        def finishing(run: loop._Run) -> None:
            self._shared[0] = MOMENTS.index(FINISHING)
            finish(run)

        resume.save = saving
        loop._Run.finish = finishing  # type: ignore[method-assign, assignment]
        loop.SAVE_SECONDS = 0
        code = 1
        try:
            loop.train(RECIPE, folder, data=make_data(), device="cpu")
            code = 0
        except BaseException:  # noqa: BLE001 - no exception may reach the caller
            traceback.print_exc()
        finally:
            os._exit(code)

    def end(self, seconds: float) -> bool:
        """Wait for it to end; whether it did, in time and without a failure."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self.process = 0
                return status == 0
            time.sleep(0.01)
        return False

    def reach_saving(self) -> None:
        """Wait until its steps are over or it saves."""
        until = time.monotonic() + SECONDS
        while self.moment == STEP and time.monotonic() < until:
            time.sleep(0.0005)

    def kill(self) -> None:
        """End it now, if it has not ended."""
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "model.safetensors").state_dict()


def kills(number: int, folder: Path, seed: int = 0) -> Lines:
    """Kill so many runs, each at a moment drawn evenly from the duration of an undisturbed one.

    Every second run is killed later, during its next save, which takes milliseconds.
    """
    rng, log = random.Random(seed), folder / "log.txt"
    begun = time.monotonic()
    whole = Life(folder / "whole", log)
    if not whole.end(10 * SECONDS):
        raise ValueError(f"the run that nobody kills failed: {log.read_text()[-500:]}")
    duration, expected = time.monotonic() - begun, weights(folder / "whole")
    killed, same, failed = Counter[str](), Counter[str](), Counter[str]()
    while sum(killed.values()) < number:
        place = folder / "killed"
        shutil.rmtree(place, ignore_errors=True)
        life = Life(place, log)
        if life.end(rng.uniform(0, duration)):
            continue  # it ended earlier
        if sum(killed.values()) % 2:
            life.reach_saving()
            time.sleep(rng.uniform(0, SAVING_SECONDS))
        moment = life.moment
        life.kill()
        killed[moment] += 1
        again = Life(place, log)
        if not again.end(max(SECONDS, 10 * duration)):
            failed[moment] += 1
            again.kill()
            continue
        found = weights(place)
        same[moment] += all(torch.equal(x, found[name]) for name, x in expected.items())
    tracebacks = log.read_text().count(TRACEBACK)
    if tracebacks:
        complain(log.read_text()[-4000:])
    for moment in MOMENTS:
        yield (
            {"killed during": moment},
            {
                "kills": killed[moment],
                "bit-identical weights": same[moment],
                "failed or hung": failed[moment],
            },
        )
    yield {"killed during": "all"}, {"kills": sum(killed.values()), "tracebacks": tracebacks}
