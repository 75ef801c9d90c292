"""MNIST from the package, which holds its scans, or from its four IDX files."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_transformer.data import idx, scan_file
from mnist_transformer.data.dataset import NUM_VAL, Dataset, Split, hold_out
from mnist_transformer.data.download import fetch
from mnist_transformer.data.spec import DataSpec

SPEC = DataSpec(
    "mnist",
    (1, 28, 28),
    tuple("0123456789"),
    background=0,
    judge="mnist-cnn",
    licence="CC BY-SA 3.0",
    source="Yann LeCun, Corinna Cortes and Christopher Burges",
)
# The scans that MNIST was made from (scans.py) as images, for a model that draws those.
SCANS = replace(SPEC, name="mnist-scans", shape=(1, 88, 88), num_levels=2, judge=None)
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class IdxFile(NamedTuple):
    """One official file: its shape, and the md5 of its bytes, plain and gzipped."""

    name: str
    shape: tuple[int, ...]
    md5: str
    md5_gz: str


# fmt: off
TRAIN_IMAGES = IdxFile("train-images-idx3-ubyte", (60000, 28, 28),
                       "6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873")
TRAIN_LABELS = IdxFile("train-labels-idx1-ubyte", (60000,),
                       "a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432")
TEST_IMAGES = IdxFile("t10k-images-idx3-ubyte", (10000, 28, 28),
                      "2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3")
TEST_LABELS = IdxFile("t10k-labels-idx1-ubyte", (10000,),
                      "27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c")
# fmt: on


def load(folder: Path | None = None) -> Dataset:
    """All of MNIST: 55,000 / 5,000 (the last of the training images) / 10,000.

    From the package, unless a folder is given or the variable names one; errors as ``read``.
    """
    if _folder(folder):
        train, test = read(folder)
    else:
        scans = scan_file.load_scans()
        every, num_train = Split(scans.images, scans.labels), len(scans) - TEST_IMAGES.shape[0]
        train, test = every.part(0, num_train), every.part(num_train, len(scans))
    return hold_out(train, test, SPEC, NUM_VAL)


def read(folder: Path | None = None) -> tuple[Split, Split]:
    """MNIST's training and test images from the IDX files.

    Read from the folder, else from the one that the variable names, else downloaded.

    Raises:
        ValueError: a file is missing, damaged or not MNIST's.
        OSError: no mirror could be reached.
    """
    folder = _folder(folder)
    train, test = (
        Split.of(_read(folder, images)[:, None], _read(folder, labels))
        for images, labels in ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS))
    )
    return train, test


def _folder(folder: Path | None) -> Path | None:
    named = os.environ.get("MNIST_TRANSFORMER_DATA")
    return Path(named) if folder is None and named else folder


def _read(folder: Path | None, file: IdxFile) -> NDArray[np.uint8]:
    """The values of a file, verified."""
    name = f"{file.name}.gz"
    path = _find(folder, file.name) if folder else fetch(name, file.md5_gz, MIRRORS)
    try:
        values = idx.read(path, file.shape)
        md5 = hashlib.md5(idx.header(file.shape) + values.tobytes(), usedforsecurity=False)
        # Fashion-MNIST and others have the same names and shapes: only the content differs.
        if (found := md5.hexdigest()) != file.md5:
            fault = f"is not MNIST's file: the md5 of its content is {found}, expected {file.md5}"
            raise ValueError(f"{path} {fault}")
    except ValueError as error:
        raise ValueError(f"{error}; get {name} from {' or '.join(MIRRORS)}") from error
    return values


def _find(folder: Path, name: str) -> Path:
    """The file in the folder, in its ``mnist`` or in torchvision's ``MNIST/raw``."""
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} does not exist or is not a folder")
    for place in (folder, folder / "mnist", folder / "MNIST" / "raw"):
        for path in (place / f"{name}.gz", place / name, place / name.replace("-idx", ".idx")):
            if path.is_file():
                return path
    raise ValueError(
        f"{folder} holds no {name}.gz (nor {name}); "
        f"get it from {' or '.join(MIRRORS)}, or give no folder"
    )
