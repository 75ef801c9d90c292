"""Datasets by name: uint8 images (N, C, H, W), int64 labels (N,), splits fixed by index."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from mnist_transformer.data.dataset import Dataset, Split
from mnist_transformer.data.mnist import load_mnist, load_mnist_5k
from mnist_transformer.data.prompted import load_prompted_mnist
from mnist_transformer.data.states import load_states

__all__ = ["DATASETS", "Dataset", "Split", "load_dataset"]

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": load_mnist,
    "mnist-5k": load_mnist_5k,
    "mnist-prompts": load_prompted_mnist,
    "smollm2-states": load_states,
}


def load_dataset(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """The three splits of a dataset.

    Args:
        name: "mnist" (55,000 / 5,000 / 10,000 images), "mnist-5k" (4,000 / 500 / 500),
            "mnist-prompts" (MNIST, each image with prompts that ask for it) or "smollm2-states"
            (what SmolLM2 makes of prompts, and their answers: no images).
        folder: where the dataset's files lie; without it the folder that the variable
            MNIST_TRANSFORMER_DATA names, else a cache that a download fills.

    Raises:
        ValueError: an unknown name, or a file that is missing, damaged or another one.
        OSError: no mirror could be reached, or the disk failed.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3) or list(DATASETS)
        raise ValueError(f"there is no dataset {name!r}; nearest: {', '.join(near)}")
    return DATASETS[name](None if folder is None else Path(folder))
