"""The state of a run: everything that changes from step to step, and the files that keep it.

A folder keeps the last two states; a run resumes from the newest one that can be read. A file
holds ``RunState.to_tree``. The images of a step, and the seeds of everything drawn at random, need
no file: they are functions of the run's seed and the step alone.
"""

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mnist_transformer.models import checkpoint, family_of
from mnist_transformer.models.base import Model
from mnist_transformer.recipes import Recipe
from mnist_transformer.training.optim import Muon, averaged, build_optimizers
from mnist_transformer.utils import trees

NUM_KEPT = 2
# Fields of a recipe that may change between two parts of one run: learning rates follow progress,
# so a run may be made shorter or longer midway; compiled or not, the model is the same.
FREE_FIELDS = {"about", "max_seconds", "epochs", "compile"}
# Fields that identities of some runs lack, and the values that those runs had.
EARLIER = {
    "muon_interval": 4,
    "model.built_in_guidance": 1.0,
    "model.passes": 1,
    "model.correction": 0.0,
}
# Optimizers keep these for each weight, in its shape, beside its number of steps.
ENTRIES = {Muon: ("momentum_buffer",), torch.optim.AdamW: ("exp_avg", "exp_avg_sq")}
UNUSABLE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)


def mix(*numbers: int) -> int:
    """A seed for torch from several numbers, 0 or more each."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def images_of(step: int, num_images: int, batch_size: int, seed: int) -> Tensor:
    """int64 (batch_size,): the run's permutations one after another, cut into batches."""
    epoch, first = divmod(step * batch_size, num_images)
    num_epochs = -(-(first + batch_size) // num_images)
    orders = [_permutation(num_images, seed, epoch + further) for further in range(num_epochs)]
    return torch.cat(orders)[first : first + batch_size]


@lru_cache(maxsize=1)
def _permutation(num_images: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(mix(seed, 0, epoch))
    return torch.randperm(num_images, generator=generator)


@dataclass
class RunState:
    """Everything that changes from step to step in a run over ``num_train`` images."""

    recipe: Recipe
    num_train: int
    seed: int
    model: Model
    step: int = 0  # steps made
    seconds: float = 0.0  # of the run, when the last of them was made
    zero: float = 0.0  # what the clock shows at second 0 of the run, without pauses

    def __post_init__(self) -> None:
        self.optimizers = build_optimizers(self.model, self.recipe)
        self.ema = averaged(self.model, self.recipe.ema) if self.recipe.ema else None

    @property
    def images_seen(self) -> int:
        return self.step * self.recipe.batch_size

    @property
    def progress(self) -> float:
        return self.progress_at(self.images_seen, self.seconds)

    def progress_at(self, images_seen: int, seconds: float) -> float:
        """From 0 to 1, by seconds or by images, whichever the recipe limits."""
        if self.recipe.max_seconds is not None:
            return min(1.0, seconds / self.recipe.max_seconds)
        assert self.recipe.epochs is not None
        return min(1.0, images_seen / (self.recipe.epochs * self.num_train))

    @property
    def averaged(self) -> Model:
        """The model that is validated and kept: with averaged weights if the recipe says so."""
        return cast(Model, self.ema.module) if self.ema else self.model

    def update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        if self.ema:
            self.ema.update_parameters(self.model)

    def identity(self) -> dict[str, Any]:
        """The values that identify the run, as JSON."""
        values = asdict(self.recipe)
        values |= {f"model.{name}": value for name, value in values.pop("model").items()}
        values["family"] = family_of(self.model.config)
        values |= {"seed": self.seed, "num_train": self.num_train}
        return dict(json.loads(json.dumps(values)))

    def to_tree(self) -> dict[str, Any]:
        """For ``trees.save_state``; learning rates are left out, as the recipe has them."""
        states = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        ema = self.ema
        return {
            "run": self.identity(),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [{str(key): value for key, value in x.items()} for x in states],
            "ema": ema and {"num_updates": int(ema.n_averaged), "model": ema.module.state_dict()},
        }

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Undo ``to_tree``, for the same model and recipe; raises one of UNUSABLE."""
        self.step, self.seconds = int(tree["step"]), float(tree["seconds"])
        self.model.load_state_dict(tree["model"])
        for optimizer, found in zip(self.optimizers, tree["optimizers"], strict=True):
            state = {int(key): value for key, value in found.items()}
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
            for p, entries in optimizer.state.items():
                shapes = {name: tuple(x.shape) for name, x in entries.items()}
                if shapes != dict.fromkeys(ENTRIES[type(optimizer)], tuple(p.shape)) | {"step": ()}:
                    raise ValueError(f"an optimizer has {shapes} for weights {tuple(p.shape)}")
        if self.ema:
            self.ema.n_averaged.fill_(tree["ema"]["num_updates"])
            self.ema.module.load_state_dict(tree["ema"]["model"])


def find_states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"), reverse=True)


def save(state: RunState, folder: Path) -> None:
    """Write a state, then drop all but the last two up to it; may raise OSError."""
    path, tree = folder / f"state-{state.step:09d}.safetensors", state.to_tree()
    with_room(path, lambda: trees.save_state(path, tree))
    states = find_states(folder)
    # A later state is one that could not be read: this run resumed from an earlier one.
    kept = [found for found in states if found <= path][:NUM_KEPT]
    for dropped in set(states) - set(kept):
        dropped.unlink()


def with_room(path: Path, write: Callable[[], None]) -> None:
    """Write a file; on a full disk the states beside it make room, the oldest first.

    Raises OSError where that does not help, without dropping a state in vain.
    """
    while True:
        try:
            return write()
        except OSError as error:
            free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
            oldest = min(find_states(path.parent), key=lambda x: (x <= path, x), default=None)
            if error.errno != errno.ENOSPC or not oldest or free >= oldest.stat().st_size:
                raise
            oldest.unlink()


def is_finished(state: RunState, weights: Path) -> bool:
    """Whether weights are this run's final ones; a full disk may have lost its last state."""
    try:
        notes = checkpoint.read_notes(weights)
        reached = state.progress_at(notes["images_seen"], notes["seconds"] + 0.05)  # rounded
        return reached >= 1 and not other_run(state, notes["run"])
    except UNUSABLE:  # old or damaged
        return False


def other_run(state: RunState, theirs: Mapping[str, Any]) -> str:
    """The first difference of an identity from this run's; "" if it is the same run."""
    ours, theirs = EARLIER | state.identity(), EARLIER | dict(theirs)
    for name in sorted((ours | theirs).keys() - FREE_FIELDS):
        if ours.get(name) != theirs.get(name):
            return f"{name} {theirs.get(name)!r} and not {ours.get(name)!r}"
    return ""


def load_newest(state: RunState, folder: Path, tell: Callable[[str], None]) -> bool:
    """Resume from the newest readable state, if there is one; ``tell`` reports unreadable ones.

    Raises ValueError: the folder is another run's, or nothing in it can be read.
    """
    states = find_states(folder)
    for path in states:
        try:
            tree = trees.load_state(path)
            if not (other := other_run(state, tree["run"])):
                state.load_tree(tree)
                return True
        except UNUSABLE as error:
            reason = str(error) if str(path) in str(error) else f"{path} is unusable: {error!r}"
            tell(f"{reason}; trying the state before")
        else:
            expected = "expected the same recipe, options and seed, or another folder"
            raise ValueError(f"{folder} holds another run, with {other}; {expected}")
    if states:
        wrong = f"none of the {len(states)} states in {folder} can be read"
        raise ValueError(f"{wrong}, expected one to resume from")
    return False


def drop_leftovers(folder: Path) -> None:
    """Delete the half-written files of a killed run; ``files.write_atomic`` names them."""
    for kind in ("safetensors", "png", "jsonl"):
        for path in folder.glob(f".*.{kind}.*"):
            path.unlink()
