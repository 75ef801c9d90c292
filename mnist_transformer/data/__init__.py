"""Data sets by name: uint8 images (N, C, H, W), int64 labels (N,), splits fixed by index.

A data set is a file with ``load(folder) -> Dataset``, whose ``spec`` says what it is, and a line
here.
"""

import os
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from mnist_transformer.data.dataset import Dataset, Split
from mnist_transformer.data.spec import DataSpec
from mnist_transformer.utils.checks import check_name

__all__ = ["DATASETS", "DataSpec", "Dataset", "Split", "load_dataset"]

DATASETS = {
    "mnist": "mnist",  # 55,000 / 5,000 / 10,000 images
    "mnist-prompts": "prompted",  # MNIST, each image with prompts that ask for it
    "smollm2-states": "states",  # a language model's states of prompts, and their answers
    "fashion-mnist": "mnist_kin:FASHION",  # clothes
    "kmnist": "mnist_kin:KMNIST",  # cursive Japanese
    "emnist-digits": "mnist_kin:EMNIST_DIGITS",  # 235,000 / 5,000 / 40,000 digits
    "cifar10": "cifar10",  # 45,000 / 5,000 / 10,000 photographs of 32 x 32 pixels
    "cifar10-jpeg": "cifar10",  # a copy of it as JPEG, which is lossy
    "idx": "idx",  # a user's IDX files
    "folder": "folder",  # a user's pictures
}
OWN = ("cifar10-jpeg", "idx", "folder")


def load_dataset(name: str, folder: str | os.PathLike[str] | None = None, **how: Any) -> Dataset:
    """The three splits of a data set.

    Args:
        name: a key of ``DATASETS``.
        folder: where the data set's files lie; by default they are downloaded. MNIST is read from
            the folder that the variable MNIST_TRANSFORMER_DATA names, else from the package.
        how: options of the data set "folder", see ``folder.load``; no other has any.

    Raises:
        ValueError: an unknown name, or a file that is missing, damaged or not the expected one.
        OSError: no mirror could be reached, or the disk failed.
    """
    check_name("dataset", name, DATASETS)
    place = None if folder is None else Path(folder)
    how = {name: value for name, value in how.items() if value is not None}
    if name in OWN and not (place and place.is_dir()):
        raise ValueError(f"{name} reads a folder of yours, got {folder}: name one with --data")
    if how and name != "folder":
        raise ValueError(f"{name} takes no {' or '.join(how)}: only the data set folder does")
    dataset: Dataset = resolve_name(f"{__name__}.{DATASETS[name]}").load(place, **how)
    return dataset
