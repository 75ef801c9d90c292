"""A data set's images: three splits, and the spec that says what they are."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_transformer.data.spec import DataSpec

NUM_VAL = 5000  # the last training images of a data set that has its own test set


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, C, H, W) and their classes int64 (N,); models are trained on ``batch``."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: NDArray[np.uint8], labels: NDArray[Any]) -> "Split":
        return cls(torch.tensor(images), torch.tensor(labels).long())

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Split":
        """The images from index ``start`` up to ``stop``, without a copy."""
        return replace(self, images=self.images[start:stop], labels=self.labels[start:stop])

    def spaced(self, count: int) -> "Split":
        """``count`` evenly spaced images, or all if there are fewer. MNIST's test set is not in
        random order: its second half is the harder one."""
        index = torch.linspace(0, len(self) - 1, min(count, len(self))).round().long()
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device) -> "Split":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """These images and their conditions, for ``Model.loss``; index int64 (B,).

        Random choices come from torch's generator, which the caller has seeded.
        """
        return self.images[index], self.labels[index]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training images, validation images (they choose checkpoints) and test images."""

    train: Split
    val: Split
    test: Split
    spec: DataSpec
    notes: tuple[str, ...] = ()  # findings in a user's files, one sentence each

    def map(self, change: Callable[[str, Split], Split]) -> "Dataset":
        """The data set with each split replaced by ``change`` of its name and itself."""
        train, val, test = (change(x, getattr(self, x)) for x in ("train", "val", "test"))
        return replace(self, train=train, val=val, test=test)


def hold_out(train: Split, test: Split, spec: DataSpec, num_val: int = NUM_VAL) -> Dataset:
    """A data set whose last ``num_val`` training images are for validation."""
    first = len(train) - num_val
    return Dataset(train.part(0, first), train.part(first, len(train)), test, spec)
