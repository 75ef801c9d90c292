"""IDX files, the format of MNIST, and the data set ``idx``: a folder of a user's own.

An IDX file: two zero bytes, a type byte (8 = uint8), the number of axes, each axis as a
big-endian uint32, then the values (http://yann.lecun.com/exdb/mnist/). It may be gzipped.

The data set: a file of images with the axes N, H, W, or N, H, W, 3 or N, 3, H, W in colour, and a
file of their labels. Files with "test" or "t10k" in their names are the test set; without any,
the last tenth of the images are. The tenth before, or the last 5,000 if fewer, validate.
"""

import gzip
import math
import re
import struct
import zipfile
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_transformer.data.dataset import NUM_VAL, Dataset, Split, hold_out
from mnist_transformer.data.spec import DataSpec

MAX_BYTES = 1_000_000_000  # a file of a few bytes may promise any number
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
STARTS = tuple(bytes([0, 0, 8, num_axes]) for num_axes in (1, 2, 3, 4))


def header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the values."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


def read(path: Path | zipfile.Path, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """The values of a file, plain or gzipped; no more are unpacked than its header declares.

    Raises ValueError for another file, a damaged one, or one that is not of ``shape``.
    """
    of = f" of {_by(shape)} bytes" if shape else ""
    starts = (header(shape)[:4],) if shape else STARTS
    try:
        with path.open("rb") as raw, _unpacked(raw) as file:
            start = file.read(4)
            if start not in starts:
                fault = f"begins with {start.hex(' ')!r}"
                raise ValueError(f"{path} {fault}, expected an IDX file{of}")
            axes = file.read(4 * start[3])
            if len(axes) < 4 * start[3]:
                raise EOFError("it ends in its header")
            found = tuple(np.frombuffer(axes, ">u4").tolist())
            if shape not in (None, found):
                raise ValueError(f"{path} holds {_by(found)} bytes, expected an IDX file{of}")
            size, before = math.prod(found), len(header(found))
            if size > MAX_BYTES:
                raise ValueError(f"{path} declares {size:,} bytes, expected {MAX_BYTES:,} or fewer")
            values, done = np.empty(size, np.uint8), 0
            while done < size and (count := file.readinto(values[done : done + CHUNK].data)):
                done += count
            if done < size or file.read(1):
                has = f"has {'more than ' if done == size else ''}{before + done} bytes"
                expected = f"expected {before + size}: it is truncated or damaged"
                raise ValueError(f"{path} {has}, {expected}")
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is truncated or damaged ({error})") from error
    return values.reshape(found)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _unpacked(raw: Any) -> BufferedIOBase:
    packed = raw.read(2) == GZIP
    raw.seek(0)
    file: BufferedIOBase = gzip.GzipFile(fileobj=raw) if packed else raw
    return file


def load(folder: Path | None = None) -> Dataset:
    """The data set of a folder; its classes are the labels from 0 to the largest.

    Raises ValueError: files are missing, too many, damaged, or do not belong together.
    """
    if folder is None or not folder.is_dir():
        raise ValueError(f"idx reads a folder of IDX files, got {folder}: name one with --data")
    # Of a file and the same one gzipped, one is enough.
    paths = {x.name.removesuffix(".gz"): x for x in sorted(folder.iterdir()) if _is_idx(x)}
    parts: dict[bool, list[NDArray[np.uint8]]] = {False: [], True: []}
    for name, path in paths.items():
        parts[bool(re.search("test|t10k", name, re.IGNORECASE))].append(read(path))
    train = _split(folder, "training", parts[False])
    test = _split(folder, "test", parts[True]) if parts[True] else None
    tenth = len(train) // 10
    if not tenth:
        raise ValueError(f"{folder} holds {len(train)} training images, expected 10 or more")
    if test is None:
        train, test = train.part(0, len(train) - tenth), train.part(len(train) - tenth, len(train))
    if train.images.shape[1:] != test.images.shape[1:]:
        both = " and of ".join(_by(tuple(x.images.shape[1:])) for x in (train, test))
        raise ValueError(f"{folder} holds images of {both} values, expected one shape")
    # A model of patches skips those of background; a photograph has none.
    blank = bool((train.images == 0).float().mean() > 0.5)
    names = range(int(max(train.labels.max(), test.labels.max())) + 1)
    channels, height, width = train.images.shape[1:]
    spec = DataSpec(
        f"idx:{folder.resolve().name}",
        (channels, height, width),
        tuple(map(str, names)),
        background=0 if blank else None,
    )
    return hold_out(train, test, spec, min(tenth, NUM_VAL))


def _is_idx(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as raw, _unpacked(raw) as file:
            return file.read(4) in STARTS
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False


def _split(folder: Path, part: str, values: list[NDArray[np.uint8]]) -> Split:
    images, labels = ([x for x in values if (x.ndim == 1) == one] for one in (False, True))
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{folder} holds {len(images)} IDX files of {part} images and {len(labels)} of their "
            "labels, expected one of each"
        )
    x = images[0]
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.size:
        axes = "expected N x H x W, or N x H x W x 3 in colour"
        raise ValueError(f"{folder} holds {part} images of {_by(images[0].shape)} bytes, {axes}")
    if len(x) != len(labels[0]):
        counts = f"{len(x):,} {part} images and {len(labels[0]):,} labels"
        raise ValueError(f"{folder} holds {counts}, expected as many")
    return Split(torch.from_numpy(x), torch.from_numpy(labels[0].astype(np.int64)))
