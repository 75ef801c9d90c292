"""A data set as models, checkpoints and the ledger know it: everything but its images.

    mnist = DataSpec("mnist", (1, 28, 28), tuple("0123456789"), background=0, judge="mnist-cnn")

Importing this needs no torch.
"""

import math
from dataclasses import dataclass

MAX_DIMS = 2**18  # of an image: a model builds tables of its pixels


@dataclass(frozen=True)
class DataSpec:
    """A data set's name and the shape of its images; ValueError for invalid values."""

    name: str  # what recipes, checkpoints and ledger rows call it
    shape: tuple[int, int, int]  # (C, H, W) of an image
    class_names: tuple[str, ...]  # in the order of the labels
    num_levels: int = 256  # levels V of a value; values are 0 to V - 1
    background: int | None = None  # the level of empty paper, if most of an image is empty
    judge: str | None = None  # the shipped model that judges drawn images, if any
    licence: str = "unknown"  # of the images, as their authors name it
    source: str = ""  # where the images come from, for people

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if len(self.shape) != 3 or min(self.shape) < 1 or math.prod(self.shape) > MAX_DIMS:
            expected = f"(C, H, W) of 1 or more each, {MAX_DIMS:,} together at most"
            raise ValueError(f"shape is {self.shape}, expected {expected}")
        if not 2 <= self.num_levels <= 256:
            raise ValueError(f"num_levels is {self.num_levels}, expected 2 to 256")
        if not self.class_names:
            raise ValueError("class_names is (), expected one name or more")
        if self.background is not None and not 0 <= self.background < self.num_levels:
            expected = f"expected a level below {self.num_levels}"
            raise ValueError(f"background is {self.background}, {expected}")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_ink(self) -> bool:
        """Whether images are ink on empty paper, as digits are, and not photographs."""
        return self.shape[0] == 1 and self.background is not None
