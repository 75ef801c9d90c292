"""Put a finished run's weights into the package: make ship RECIPE=mnist-patch."""

import os
import sys

import torch

from mnist_transformer.models import checkpoint
from mnist_transformer.models.loading import WEIGHTS


def ship(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a checkpoint, notes and all, with its weights rounded to bfloat16, half the size."""
    model, notes = checkpoint.load(source), checkpoint.read_notes(source)
    checkpoint.save(model, target, dtype=torch.bfloat16, **notes)


if __name__ == "__main__":
    name = sys.argv[1]
    ship(f"runs/{name}/model.safetensors", WEIGHTS / f"{name}.safetensors")
