"""Data sets by name: uint8 images (N, C, H, W), int64 labels (N,), splits fixed by index.

A data set is a file with a ``SPEC`` and ``load(folder) -> Dataset``, and a line here.
"""

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

from mnist_transformer.data.dataset import Dataset, Split
from mnist_transformer.data.spec import DataSpec
from mnist_transformer.utils.checks import check_name

__all__ = ["DATASETS", "DataSpec", "Dataset", "Split", "load_dataset", "spec_of"]

DATASETS = {
    "mnist": "mnist",  # 55,000 / 5,000 / 10,000 images
    "mnist-5k": "mnist_5k",  # 4,000 / 500 / 500 of them, from a package
    "mnist-prompts": "prompted",  # MNIST, each image with prompts that ask for it
    "smollm2-states": "states",  # a language model's states of prompts, and their answers
}


def load_dataset(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """The three splits of a data set.

    Args:
        name: a key of ``DATASETS``.
        folder: where the data set's files lie; without it the folder that the variable
            MNIST_TRANSFORMER_DATA names, else what comes with the package.

    Raises:
        ValueError: an unknown name, or a file that is missing, damaged or another one.
        OSError: no mirror could be reached, or the disk failed.
    """
    dataset: Dataset = _module(name).load(None if folder is None else Path(folder))
    return dataset


def spec_of(name: str) -> DataSpec:
    """The spec of a data set, without its images. Raises ValueError for an unknown name."""
    spec: DataSpec = _module(name).SPEC
    return spec


def _module(name: str) -> ModuleType:
    check_name("dataset", name, DATASETS)
    return import_module(f"{__name__}.{DATASETS[name]}")
