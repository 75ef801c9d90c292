"""MNIST from its four IDX files.

An IDX file: two zero bytes, a type byte (8 = uint8), the number of axes, each axis as a
big-endian uint32, then the values (http://yann.lecun.com/exdb/mnist/).
"""

import gzip
import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

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
FOLDER_VARIABLE = "MNIST_TRANSFORMER_DATA"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NUM_VAL = 5000


class IdxFile(NamedTuple):
    """One official file: its shape and the md5 of its bytes, as they are and gzipped."""

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

    Raises:
        ValueError: a file is missing, damaged or not MNIST's.
        OSError: no mirror could be reached.
    """
    if folder is None and os.environ.get(FOLDER_VARIABLE):
        folder = Path(os.environ[FOLDER_VARIABLE])
    train = _split(folder, TRAIN_IMAGES, TRAIN_LABELS)
    num_train = len(train) - NUM_VAL
    return Dataset(
        train=train.part(0, num_train),
        val=train.part(num_train, len(train)),
        test=_split(folder, TEST_IMAGES, TEST_LABELS),
        spec=SPEC,
    )


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The values of an IDX file, gzipped or not.

    Raises:
        ValueError: the file is truncated, damaged, or holds something other than ``shape``.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is truncated or damaged ({error})") from error
    header = _header(shape)
    expected = f"an IDX file of {' x '.join(map(str, shape))} bytes"
    if not content.startswith(header[:4]):
        raise ValueError(f"{path} begins with {content[:4].hex(' ')!r}, expected {expected}")
    if not content.startswith(header):
        found = struct.unpack_from(f">{len(shape)}I", content.ljust(len(header), b"\0"), 4)
        raise ValueError(f"{path} holds {' x '.join(map(str, found))} bytes, expected {expected}")
    if len(content) != len(header) + np.prod(shape):
        raise ValueError(
            f"{path} has {len(content)} bytes, expected {len(header) + np.prod(shape)}: "
            "it is truncated or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _header(shape: tuple[int, ...]) -> bytes:
    """What an IDX file of bytes in that shape begins with."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


def _split(folder: Path | None, images: IdxFile, labels: IdxFile) -> Split:
    return Split(
        torch.from_numpy(_load(folder, images).copy()).unsqueeze(1),
        torch.from_numpy(_load(folder, labels).astype(np.int64)),
    )


def _load(folder: Path | None, file: IdxFile) -> NDArray[np.uint8]:
    if folder is None:
        path = fetch(f"{file.name}.gz", file.md5_gz, MIRRORS)
    else:
        path = _find(folder, file)
    hint = f"get {file.name}.gz from {MIRRORS[0]} or {MIRRORS[1]}"
    try:
        values = read_idx(path, file.shape)
    except ValueError as error:
        raise ValueError(f"{error}; {hint}") from error
    # Fashion-MNIST and others have the same names and shapes: only the content tells.
    found = hashlib.md5(_header(file.shape) + values.tobytes(), usedforsecurity=False).hexdigest()
    if found != file.md5:
        raise ValueError(
            f"{path} is not MNIST's file: the md5 of its content is {found}, "
            f"expected {file.md5}; {hint}"
        )
    return values


def _find(folder: Path, file: IdxFile) -> Path:
    """The file in the folder itself, in its ``mnist`` or in torchvision's ``MNIST/raw``."""
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} does not exist or is not a folder")
    names = (f"{file.name}.gz", file.name, file.name.replace("-idx", ".idx"))
    for place in (folder, folder / "mnist", folder / "MNIST" / "raw"):
        for name in names:
            if (place / name).is_file():
                return place / name
    raise ValueError(
        f"{folder} holds no {names[0]} (nor {names[1]}); "
        f"get it from {MIRRORS[0]} or {MIRRORS[1]}, or give no folder to have it downloaded"
    )
