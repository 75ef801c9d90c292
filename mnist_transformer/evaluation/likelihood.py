"""Bits/dim of whole splits."""

import math
from functools import partial
from typing import Any

from torch import Tensor

from mnist_transformer.data import Dataset, Split
from mnist_transformer.evaluation.metrics import Progress, quiet
from mnist_transformer.models.base import Model, in_batches


def bits_per_dim(
    model: Model,
    split: Split,
    *,
    use_labels: bool = True,
    batch_size: int = 250,
    report: Progress = quiet,
    stage: str = "bits/dim",
) -> float:
    """Mean of nats / (ln 2 * C * H * W) over every image of the split, given its class or not.

    Raises:
        ValueError: the model has no likelihood or the split no images.
    """
    if not len(split.images):
        raise ValueError("the split holds no images, expected one or more")

    def nats(images: Tensor, labels: Tensor) -> Tensor:
        return model.nll(images, labels if use_labels else None)

    columns, heard = (split.images, split.labels), partial(report, stage)
    nats_N = in_batches(model, nats, *columns, batch_size=batch_size, report=heard)
    return nats_N.sum().item() / (math.log(2) * split.images.numel())


def likelihood_figures(model: Model, dataset: Dataset, report: Progress = quiet) -> dict[str, Any]:
    """Bits/dim given the class (validation, test) and without it (test), if the model has any."""
    if model.likelihood is None:
        return {}
    measure = partial(bits_per_dim, model, report=report)
    return {
        "bits_per_dim_val": measure(dataset.val, stage="bits_per_dim_val"),
        "bits_per_dim": measure(dataset.test, stage="bits_per_dim"),
        "bits_per_dim_null": measure(dataset.test, use_labels=False, stage="bits_per_dim_null"),
    }
