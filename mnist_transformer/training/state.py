"""The states in a run's folder: the last two are kept, the newest that can be read is taken up.

A state is a tree (see ``trees.save_state``) with at least ``step`` and ``run``, the
identity of the run that it belongs to.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import Model
from mnist_transformer.recipes import Recipe
from mnist_transformer.utils import trees

NUM_KEPT = 2
# Fields of a recipe that may change between two parts of one run: a run may be made shorter or
# longer on its way, since learning rates follow its progress.
FREE_FIELDS = {"about", "max_seconds", "epochs"}


def identity(recipe: Recipe, model: Model, seed: int, num_train: int) -> dict[str, Any]:
    """What makes two runs the same one, as JSON has it."""
    values = asdict(recipe)
    config = values.pop("model")
    values |= {f"model.{name}": value for name, value in config.items()}
    values |= {"family": checkpoint.family_of(model), "seed": seed, "num_train": num_train}
    return dict(json.loads(json.dumps(values)))


def save_newest(folder: Path, step: int, tree: dict[str, Any]) -> None:
    """Write the state of a step, then drop all but the last two up to it; may raise OSError."""
    trees.save_state(folder / f"state-{step:09d}.safetensors", tree)
    states = find_states(folder)
    # A later state is one that could not be read: this run has come back from before it.
    kept = [path for path in states if _step_of(path) <= step][:NUM_KEPT]
    for path in states:
        if path not in kept:
            path.unlink()


def load_newest(folder: Path, run: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable state of a run, None in a fresh folder; and what to tell the user.

    Raises:
        ValueError: the folder is another run's, or nothing in it can be read.
    """
    problems = []
    states = find_states(folder)
    for path in states:
        try:
            tree = trees.load_state(path)
        except ValueError as error:
            problems.append(f"{error}; trying the state before")
            continue
        theirs = tree["run"]
        fixed = sorted((run | theirs).keys() - FREE_FIELDS)
        different = [k for k in fixed if run.get(k) != theirs.get(k)]
        if different:
            name = different[0]
            raise ValueError(
                f"{folder} holds another run, with {name} {theirs.get(name)!r} and not "
                f"{run.get(name)!r}; expected the same recipe, options and seed, or another folder"
            )
        return tree, problems
    if states:
        raise ValueError(
            f"none of the {len(states)} states in {folder} can be read, expected one to go on from"
        )
    return None, []


def find_states(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    return sorted(folder.glob("state-*.safetensors"), key=_step_of, reverse=True)


def drop_leftovers(folder: Path) -> None:
    """Delete what a killed run had half written: see ``files.write_atomic`` for the names."""
    for kind in ("safetensors", "png", "jsonl"):
        for path in folder.glob(f".*.{kind}.*"):
            path.unlink()


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("state-"))
