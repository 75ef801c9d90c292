"""MNIST Transformer: small generative image models, trained, measured and ready to draw.

    from mnist_transformer import sample
    images = sample([3, 1, 4])  # uint8 (3, 1, 28, 28)

Importing the package is cheap: torch is imported by the first call that needs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mnist_transformer.options import FLAGSHIP, Keep, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_transformer.data import load_dataset
    from mnist_transformer.evaluation.protocol import evaluate
    from mnist_transformer.models.base import GenerativeModel
    from mnist_transformer.models.loading import load
    from mnist_transformer.training.loop import train

__version__ = "0.1.0"
__all__ = ["Keep", "Sampling", "__version__", "evaluate", "load", "load_dataset", "sample", "train"]

_HOMES = {
    "evaluate": "evaluation.protocol",
    "load": "models.loading",
    "load_dataset": "data",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def sample(
    cond: str | Sequence[int | str] | Tensor | None,
    *,
    model: str | os.PathLike[str] | GenerativeModel = FLAGSHIP,
    seeds: Iterable[int] | None = None,
    how: Sampling | None = None,
    keep: Keep | None = None,
    device: str | None = None,
) -> Tensor:
    """Draw images: uint8 (B, C, H, W) on the CPU.

    Args:
        cond: one class per image, as an index or a name; or all of them as ``draw`` takes them,
            such as "2026" or "cat,dog"; None draws without a class.
        model: a loaded model, or the name or path of one, as ``load`` takes them.
        seeds: one seed per image; by default 0, 1, 2, ...
        keep: pixels to keep: only the others are drawn.
        device: such as "cpu" or "cuda"; by default where the model is, or the best available.

    An unknown model or class, or a seed or option that the model cannot honour, raises ValueError.
    """
    from mnist_transformer.models import loading
    from mnist_transformer.utils import classes
    from mnist_transformer.utils.devices import to_device

    if isinstance(model, str | os.PathLike):
        model = loading.load(model, device)
    elif device is not None:
        model = to_device(model, device)
    names = model.class_names
    labels: Any = cond
    if isinstance(cond, str):
        labels = classes.classes_of(cond, names)
    elif isinstance(cond, Sequence):
        labels = [classes.class_of(c, names) if isinstance(c, str) else c for c in cond]
    if seeds is None:
        if labels is None:
            raise ValueError("cond and seeds are both None, expected one of them")
        seeds = range(len(labels))
    return model.sample(labels, seeds, how, keep)
