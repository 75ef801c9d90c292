"""IDX files, the format of MNIST, and the data set ``idx``: a folder of a user's own.

An IDX file: two zero bytes, a type byte (8 = uint8), the number of axes, each axis as a
big-endian uint32, then the values (http://yann.lecun.com/exdb/mnist/). It may be gzipped.

The data set: a file of images with the axes N, H, W, or N, H, W, 3 or N, 3, H, W in colour, and a
file of their labels; or both in one parquet file (data/parquet.py). Files with "test" or "t10k" in
their names are the test set; without any, it is the last tenth of the images. The tenth before it,
at most 5,000 images, is for validation.
"""

import gzip
import math
import re
import struct
import zipfile
import zlib
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_transformer.data import parquet
from mnist_transformer.data.dataset import NUM_VAL, Dataset, Split, hold_out
from mnist_transformer.data.spec import DataSpec

MAX_BYTES = 700_000_000  # a file of a few bytes may declare any number
GZIP = b"\x1f\x8b"
STARTS = tuple(bytes([0, 0, 8, num_axes]) for num_axes in (1, 2, 3, 4))


def header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the values."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


def read(path: Path | zipfile.Path, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """The values of a file, plain or gzipped; no more are unpacked than its header declares.

    Raises ValueError if the file is not IDX, is damaged, or is not of ``shape``.
    """
    of = f" of {_by(shape)} bytes" if shape else ""
    try:
        with path.open("rb") as raw:
            is_packed = raw.read(2) == GZIP
            raw.seek(0)
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_packed else raw
            start = file.read(4)
            if start not in STARTS:
                raise ValueError(f"{path} begins with {start.hex(' ')!r}, expected an IDX file{of}")
            axes = file.read(4 * start[3])
            if len(axes) < 4 * start[3]:
                raise EOFError("it ends in its header")
            found = tuple(np.frombuffer(axes, ">u4").tolist())
            if shape not in (None, found):
                raise ValueError(f"{path} holds {_by(found)} bytes, expected an IDX file{of}")
            size, before = math.prod(found), len(start + axes)
            if size > MAX_BYTES:
                raise ValueError(f"{path} declares {size:,} bytes, expected {MAX_BYTES:,} or fewer")
            values = np.frombuffer(file.read(size + 1), np.uint8)
            if len(values) != size:
                has = f"has {before + len(values)} bytes{' or more' * (len(values) > size)}"
                expected = f"expected {before + size}: it is truncated or damaged"
                raise ValueError(f"{path} {has}, {expected}")
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is truncated or damaged ({error})") from error
    return values.reshape(found)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def load(folder: Path) -> Dataset:
    """The data set of a folder; its classes are the labels from 0 to the largest.

    Raises ValueError: a file is missing, of another kind or damaged, or files do not fit.
    """
    # A file may be there both plain and gzipped: read one of them.
    paths = {path.name.removesuffix(".gz"): path for path in sorted(folder.glob("[!.]*"))}
    paths.pop("scores.safetensors", None)  # of drawn images, see evaluation/synthetic.py
    values = {name: _arrays(path) for name, path in paths.items() if path.is_file()}
    tests = [values.pop(x) for x in list(values) if re.search("test|t10k", x, re.IGNORECASE)]
    train = _split(folder, "training", [*chain(*values.values())])
    num, tenth = len(train), len(train) // 10
    if not tenth:
        raise ValueError(f"{folder} holds {num} training images, expected 10 or more")
    test = _split(folder, "test", [*chain(*tests)]) if tests else train.part(num - tenth, num)
    train = train if tests else train.part(0, num - tenth)
    if (shape := train.images.shape[1:]) != (other := test.images.shape[1:]):
        raise ValueError(f"{folder} holds images of {_by(shape)} and of {_by(other)} bytes")
    names = tuple(map(str, range(int(torch.cat([train.labels, test.labels]).max()) + 1)))
    # Models skip patches of background, which fill most of a drawing.
    background = 0 if 2 * (train.images == 0).sum() > train.images.numel() else None
    channels, height, width = shape
    name = f"idx:{folder.resolve().name}"
    spec = DataSpec(name, (channels, height, width), names, background=background)
    return hold_out(train, test, spec, min(tenth, NUM_VAL))


def _arrays(path: Path) -> tuple[NDArray[Any], ...]:
    """The values of an IDX file, or images and labels of a parquet file."""
    if path.suffix != ".parquet":
        return (read(path),)
    images, labels, _ = parquet.read([path])
    if len(wrong := labels[(labels < 0) | (labels > 255)]):
        raise ValueError(f"{path} has the label {wrong[0]}, expected 0 to 255")
    return images, labels


def _split(folder: Path, part: str, values: list[NDArray[Any]]) -> Split:
    images = [x if x.ndim == 4 else x[:, None] for x in values if x.ndim in (3, 4)]
    labels = [x for x in values if x.ndim == 1]
    if len(values) == 2 and len(images) == len(labels) == 1 and len(images[0]) == len(labels[0]):
        if images[0].shape[1] in (1, 3):
            return Split.of(images[0], labels[0])
        if images[0].shape[3] in (1, 3):
            return Split.of(images[0].transpose(0, 3, 1, 2), labels[0])
    found = " and ".join(_by(x.shape) for x in values) or "no"
    expected = "N x H x W (or N x H x W x 3, in colour) for images and N for their labels"
    raise ValueError(f"{folder} holds IDX files of {found} {part} bytes, expected {expected}")
