"""MNIST from the package, which holds its scans, or from its four IDX files.

An IDX file: two zero bytes, a type byte (8 = uint8), the number of axes, each axis as a
big-endian uint32, then the values (http://yann.lecun.com/exdb/mnist/).
"""

import gzip
import hashlib
import math
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_transformer.data import scan_file
from mnist_transformer.data.dataset import Dataset, Split
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
FOLDER_VARIABLE = "MNIST_TRANSFORMER_DATA"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NUM_VAL = 5000


class IdxFile(NamedTuple):
    """One official file: its shape, and the md5 of its bytes, plain and gzipped."""

    name: str
    shape: tuple[int, ...]
    md5: str
    md5_gz: str


TRAIN_IMAGES = IdxFile(
    "train-images-idx3-ubyte",
    (60000, 28, 28),
    "6bbc9ace898e44ae57da46a324031adb",
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
)
TRAIN_LABELS = IdxFile(
    "train-labels-idx1-ubyte",
    (60000,),
    "a25bea736e30d166cdddb491f175f624",
    "d53e105ee54ea40749a09fcbcd1e9432",
)
TEST_IMAGES = IdxFile(
    "t10k-images-idx3-ubyte",
    (10000, 28, 28),
    "2646ac647ad5339dbf082846283269ea",
    "9fb629c4189551a2d022fa330f9573f3",
)
TEST_LABELS = IdxFile(
    "t10k-labels-idx1-ubyte",
    (10000,),
    "27ae3e4e09519cfbb04c329615203637",
    "ec29112dd5afa0611ce80d1b7f02629c",
)


def load(folder: Path | None = None) -> Dataset:
    """All of MNIST: 55,000 / 5,000 (the last of the training images) / 10,000.

    From the package, unless a folder is given or the variable names one.

    Raises:
        ValueError: a file is missing, damaged or not MNIST's.
    """
    if _folder(folder):
        train, test = read(folder)
    else:
        scans = scan_file.load_scans()
        num_all, num_test = len(scans), TEST_IMAGES.shape[0]
        all_images = Split(scans.images, scans.labels)
        train = all_images.part(0, num_all - num_test)
        test = all_images.part(num_all - num_test, num_all)
    num_train = len(train) - NUM_VAL
    return Dataset(train.part(0, num_train), train.part(num_train, len(train)), test, SPEC)


def read(folder: Path | None = None) -> tuple[Split, Split]:
    """MNIST's training and test images from the IDX files.

    They lie in the folder, else in the one that the variable names, else they are downloaded.

    Raises:
        ValueError: a file is missing, damaged or not MNIST's.
        OSError: no mirror could be reached.
    """
    folder = _folder(folder)
    train, test = (
        Split(
            torch.from_numpy(_read(folder, images).copy()).unsqueeze(1),
            torch.from_numpy(_read(folder, labels).astype(np.int64)),
        )
        for images, labels in ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS))
    )
    return train, test


def _folder(folder: Path | None) -> Path | None:
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if folder is None and named else folder


def _read(folder: Path | None, file: IdxFile) -> NDArray[np.uint8]:
    """The values of a file, verified."""
    if folder is None:
        path = fetch(f"{file.name}.gz", file.md5_gz, MIRRORS)
    else:
        path = _find(folder, file.name)
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        fault = _fault(content, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fault = f"is truncated or damaged ({error})"
    if fault:
        raise ValueError(f"{path} {fault}; get {file.name}.gz from {' or '.join(MIRRORS)}")
    return np.frombuffer(content, np.uint8)[-math.prod(file.shape) :].reshape(file.shape)


def _fault(content: bytes, file: IdxFile) -> str | None:
    """The reason why these are not the file's bytes; None if they are."""
    header = struct.pack(f">BBBB{len(file.shape)}I", 0, 0, 8, len(file.shape), *file.shape)
    expected = f"expected an IDX file of {' x '.join(map(str, file.shape))} bytes"
    if not content.startswith(header[:4]):
        return f"begins with {content[:4].hex(' ')!r}, {expected}"
    if not content.startswith(header):
        found = np.frombuffer(content[4 : len(header)].ljust(len(header) - 4, b"\0"), ">u4")
        return f"holds {' x '.join(map(str, found))} bytes, {expected}"
    size = len(header) + math.prod(file.shape)
    if len(content) != size:
        return f"has {len(content)} bytes, expected {size}: it is truncated or damaged"
    # Fashion-MNIST and others have the same names and shapes: only the content tells.
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != file.md5:
        return f"is not MNIST's file: the md5 of its content is {md5}, expected {file.md5}"
    return None


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
