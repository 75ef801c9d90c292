"""CIFAR-10: 60,000 colour photographs of ten classes, 32 x 32 pixels.

The official binary version has six batches of 10,000 records, each a label and 3 x 32 x 32 bytes
(https://www.cs.toronto.edu/~kriz/cifar.html). Hugging Face's copy is parquet files with a picture
file and a label in each row. If these files are JPEG, which changes the images, they are another
data set with figures of its own: ``cifar10-jpeg``.
"""

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_transformer.data import parquet
from mnist_transformer.data.dataset import Dataset, Split, hold_out
from mnist_transformer.data.download import obtain
from mnist_transformer.data.spec import DataSpec

SPEC = DataSpec(
    "cifar10",
    (3, 32, 32),
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    judge="cifar10-cnn",
    source="Alex Krizhevsky, Vinod Nair and Geoffrey Hinton",
)
JPEG_SPEC = replace(SPEC, name="cifar10-jpeg", source=f"{SPEC.source}; as JPEG, which is lossy")
ARCHIVE, MD5 = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
MIRRORS = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
TAKE = f"get {ARCHIVE} from {' or '.join(MIRRORS)}"
UNPACKED = "cifar-10-batches-bin"
PICKLED = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")
TRAIN, TEST = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]
PER_BATCH = 10_000
RECORD = 1 + 3 * 32 * 32


def load(folder: Path | None = None) -> Dataset:
    """45,000 / 5,000 / 10,000 images; errors as ``load_dataset``."""
    if folder is None or (folder / ARCHIVE).is_file():
        path = obtain(folder, ARCHIVE, MD5, MIRRORS, SPEC.name)
        with tarfile.open(path) as tar:
            files = {Path(entry.name).name: tar.extractfile(entry) for entry in tar}
            return _of_batches(path, {name: file.read() for name, file in files.items() if file})
    for place in (folder / UNPACKED, folder):
        if batches := {path.name: path.read_bytes() for path in place.glob("*_batch*.bin")}:
            return _of_batches(place, batches)
    tables = [sorted(folder.glob(f"{part}*.parquet")) for part in ("train", "test")]
    if all(tables):
        train, test = (parquet.read(paths, (32, 32)) for paths in tables)
        spec = JPEG_SPEC if "JPEG" in train[2] | test[2] else SPEC
        return hold_out(_split(folder, 5, *train[:2]), _split(folder, 1, *test[:2]), spec)
    for name in PICKLED:
        if (path := folder / name).exists():
            raise ValueError(f"{path} is the pickled version, which could run any code; {TAKE}")
    parts = "train*.parquet and test*.parquet"
    raise ValueError(f"{folder} holds no {ARCHIVE}, {UNPACKED} or {parts}; {TAKE}")


def _of_batches(place: Path, files: dict[str, bytes]) -> Dataset:
    for name in TRAIN + TEST:
        if (size := len(files.get(name, b""))) != PER_BATCH * RECORD:
            fault = f"has {size} bytes, expected {PER_BATCH * RECORD}: it is truncated or missing"
            raise ValueError(f"{name} in {place} {fault}; {TAKE}")
    rows = np.frombuffer(b"".join(files[x] for x in TRAIN + TEST), np.uint8).reshape(-1, RECORD)
    images, labels, end = rows[:, 1:].reshape(-1, *SPEC.shape), rows[:, 0], len(TRAIN) * PER_BATCH
    train = _split(place, 5, images[:end], labels[:end])
    return hold_out(train, _split(place, 1, images[end:], labels[end:]), SPEC)


def _split(place: Path, batches: int, images: NDArray[np.uint8], labels: NDArray[Any]) -> Split:
    if len(labels) != batches * PER_BATCH:
        part, count = "train" if batches > 1 else "test", f"{batches * PER_BATCH:,}"
        raise ValueError(f"{place} holds {len(labels):,} {part} images, expected {count}; {TAKE}")
    if len(wrong := labels[(labels < 0) | (labels >= SPEC.num_classes)]):
        raise ValueError(f"{place} has the label {wrong[0]}, expected 0 to {SPEC.num_classes - 1}")
    if (labels[1:] >= labels[:-1]).all():
        # Rows are sorted by class, so the last 5,000 would all be trucks: interleave the classes.
        rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
        images, labels = (x[np.argsort(rank, kind="stable")] for x in (images, labels))
    return Split.of(images, labels)
