"""CIFAR-10: 60,000 colour photographs of ten classes, 32 x 32 pixels.

The official binary version is six batches of 10,000 records, each a label and 3 x 32 x 32 bytes
(https://www.cs.toronto.edu/~kriz/cifar.html). Hugging Face's copy is parquet files with a picture
file and a label in each row. Where those are JPEG, which changes the images, they are another
data set with figures of its own: ``cifar10-jpeg``.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mnist_transformer.data.dataset import NUM_VAL, Dataset, Split, hold_out
from mnist_transformer.data.download import fetch
from mnist_transformer.data.spec import DataSpec

SPEC = DataSpec(
    "cifar10",
    (3, 32, 32),
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    source="Alex Krizhevsky, Vinod Nair and Geoffrey Hinton",
)
JPEG_SPEC = replace(SPEC, name="cifar10-jpeg", source=f"{SPEC.source}; as JPEG, which is lossy")
ARCHIVE, MD5 = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
MIRRORS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
TAKE = f"get {ARCHIVE} from {' or '.join(MIRRORS)}"
INSIDE = "cifar-10-batches-bin"
BATCHES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
PER_BATCH = 10_000
RECORD = 1 + 3 * 32 * 32
PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")


def load(folder: Path | None = None) -> Dataset:
    """45,000 / 5,000 / 10,000 images, from a folder or downloaded.

    Raises:
        ValueError: a file is missing, damaged or another one, or pyarrow is.
        OSError: no mirror could be reached.
    """
    if folder is None:
        return _of_archive(fetch(ARCHIVE, MD5, MIRRORS, SPEC.name))
    if not folder.is_dir():
        raise ValueError(f"the data folder {folder} does not exist or is not a folder")
    place = folder / INSIDE if (folder / INSIDE).is_dir() else folder
    if (place / BATCHES["test"][0]).is_file():
        return _of_batches(lambda name: (place / name).read_bytes(), place)
    if (archive := folder / ARCHIVE).is_file():
        if (found := pooch.file_hash(archive, "md5")) != MD5:
            raise ValueError(f"{archive} has the md5 {found}, expected {MD5}; {TAKE}")
        return _of_archive(archive)
    if any(folder.glob("train*.parquet")):
        return _of_parquet(folder)
    for name in PICKLED:
        if (pickled := folder / name).exists():
            raise ValueError(f"{pickled} is the pickled version, which can run code; {TAKE}")
    raise ValueError(f"{folder} holds no {ARCHIVE}, {INSIDE} or train*.parquet; {TAKE}")


def _of_archive(path: Path) -> Dataset:
    with tarfile.open(path) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(f"{INSIDE}/{name}")
            assert file is not None  # of a verified archive
            return file.read()

        return _of_batches(read, path)


def _of_batches(read: Callable[[str], bytes], place: Path) -> Dataset:
    splits = {}
    for part, names in BATCHES.items():
        records = []
        for name in names:
            try:
                content = read(name)
            except FileNotFoundError as error:
                raise ValueError(f"{place} holds no {name}; {TAKE}") from error
            if len(content) != PER_BATCH * RECORD:
                size = f"has {len(content)} bytes, expected {PER_BATCH * RECORD}"
                raise ValueError(f"{place / name} {size}: it is truncated or damaged; {TAKE}")
            records.append(np.frombuffer(content, np.uint8).reshape(-1, RECORD))
            _check_labels(place / name, records[-1][:, 0])
        rows = np.concatenate(records)
        splits[part] = _split(rows[:, 1:].reshape(-1, *SPEC.shape), rows[:, 0])
    return hold_out(**splits, spec=SPEC, num_val=NUM_VAL)


def _of_parquet(folder: Path) -> Dataset:
    splits, kinds = {}, set()
    for part, batches in BATCHES.items():
        total = len(batches) * PER_BATCH
        images, labels = np.empty((total, *SPEC.shape), np.uint8), np.empty(total, np.uint8)
        done = 0
        for path in sorted(folder.glob(f"{part}*.parquet")):
            for content, label in _rows(path):
                _check_labels(path, np.array([label]))
                if done < total:
                    images[done], kind = _decode(path, content)
                    labels[done] = label
                    kinds.add(kind)
                done += 1
        if done != total:
            expected = f"expected {total:,} in {part}*.parquet"
            raise ValueError(f"{folder} holds {done:,} images to {part} with, {expected}; {TAKE}")
        if (labels[1:] >= labels[:-1]).all():
            # Sorted by class, the last of them would be trucks: deal the classes out in turn.
            turn = np.argsort(np.arange(total) - np.searchsorted(labels, labels), kind="stable")
            images, labels = images[turn], labels[turn]
        splits[part] = _split(images, labels)
    return hold_out(**splits, spec=JPEG_SPEC if "JPEG" in kinds else SPEC, num_val=NUM_VAL)


def _rows(path: Path) -> Iterator[tuple[Any, Any]]:
    """The bytes of a picture file, and its label, of each row."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        needs = "needs the package pyarrow: pip install 'mnist-transformer[parquet]'"
        raise ValueError(f"{path} {needs}") from error
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(1000, columns=["img", "label"]):
                for row in batch.to_pylist():
                    yield row["img"]["bytes"], row["label"]
    except (pyarrow.ArrowException, KeyError, TypeError) as error:
        columns = "expected a parquet file with the columns img, of bytes and path, and label"
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged or another file ({reason}), {columns}") from error


def _decode(path: Path, content: bytes) -> tuple[NDArray[np.uint8], str | None]:
    """A picture file as uint8 (3, 32, 32), and its format."""
    try:
        with Image.open(BytesIO(content), formats=("PNG", "JPEG")) as picture:
            if picture.size != (32, 32):
                size = f"{picture.width}x{picture.height}"
                raise ValueError(f"{path} holds a picture of {size} pixels, expected 32x32")
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1), picture.format
    except (UnidentifiedImageError, OSError, SyntaxError, TypeError) as error:
        raise ValueError(f"{path} holds a damaged picture: {error}") from error


def _check_labels(path: Path, labels: NDArray[Any]) -> None:
    if len(wrong := labels[(labels < 0) | (labels >= SPEC.num_classes)]):
        raise ValueError(f"{path} has the label {wrong[0]}, expected 0 to {SPEC.num_classes - 1}")


def _split(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
    images = np.ascontiguousarray(images)
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
