"""Put a finished run's weights into the package: make ship RECIPE=mnist-patch."""

import os
import sys
from typing import Annotated

import torch
import tyro

from mnist_transformer.models import checkpoint
from mnist_transformer.models.loading import WEIGHTS
from mnist_transformer.utils.terminal import exit_code


def ship(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a checkpoint, notes and all, with its weights rounded to bfloat16, half the size."""
    model, notes = checkpoint.load(source), checkpoint.read_notes(source)
    checkpoint.save(model, target, dtype=torch.bfloat16, **notes)


def main(recipe: Annotated[str, tyro.conf.Positional]) -> None:
    """Ship a recipe's run."""
    ship(f"runs/{recipe}/model.safetensors", WEIGHTS / f"{recipe}.safetensors")


if __name__ == "__main__":
    sys.exit(exit_code("tools.ship", lambda: tyro.cli(main, prog="python -m tools.ship")))
