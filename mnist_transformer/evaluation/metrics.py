"""Measures of models, images and their features: functions that know no model family and no file.

- Bits/dim: nats / (ln 2 * C * H * W), over every dimension of every image.
- Class agreement: how often the judge reads a drawn image as the class it was drawn for.
- fd_cnn, the Frechet distance between two sets of features (arXiv 1706.08500),
  |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), on features of this project's own classifier;
  never comparable with a published FID, which uses Inception features.
- Improved precision and recall (arXiv 1904.06991, equations 1 and 2): the share of one set within
  the balls around the other set's points, each with its k-th nearest neighbour on its surface.
- Copy check: distances, in pixel space, of images to their nearest training image.

Shapes: N images or points, F features, C channels, H x W pixels. All in float64 on the CPU,
except the copy check's distances (float32).
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from mnist_transformer.data import Split
from mnist_transformer.models.base import Judge, Model, in_batches, measured_at_once

NUM_NEIGHBOURS = 3  # k of precision and recall
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while something long runs."""


def quiet(stage: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def bits_per_dim(
    model: Model,
    split: Split,
    *,
    use_labels: bool = True,
    fitted: bool = False,
    report: Progress = quiet,
    stage: str = "bits/dim",
) -> float:
    """Bits/dim of a split, with or without classes; ValueError as in ``nll``, or if it is empty."""
    if not len(split):
        raise ValueError("the split holds no images, expected one or more")

    def nats(images: Tensor, labels: Tensor) -> Tensor:
        return model.nll(images, labels if use_labels else None, fitted=fitted)

    columns, at_once = (split.images, split.labels), measured_at_once(split.images)
    heard = partial(report, stage)
    nats_N = in_batches(model, nats, *columns, batch_size=at_once, report=heard)
    return nats_N.sum().item() / (math.log(2) * split.images.numel())


def class_agreement(features_NF: Tensor, labels: Tensor, judge: Judge) -> float:
    """Fraction in [0, 1] of images that the judge reads as labels (N,), from its features."""
    logits_NK = in_batches(judge, judge.classify, features_NF.float())
    return (logits_NK.argmax(-1) == labels.cpu()).double().mean().item()


def fd_cnn(real_NF: Tensor, drawn_NF: Tensor) -> float:
    """Frechet distance, 0 or more, between two sets of at least two features each."""
    _check_features(real_NF, drawn_NF, least=2)
    shape = (1, 1, real_NF.shape[1])  # features stand for the images, as they are extracted already
    distance = FrechetInceptionDistance(feature=nn.Identity(), input_img_size=shape)
    distance.update(real_NF.double(), real=True)
    distance.update(drawn_NF.double(), real=False)
    # Rounding takes the distance of equal sets a little below 0.
    return max(0.0, distance.compute().item())


def precision_recall(real_NF: Tensor, drawn_NF: Tensor) -> dict[str, float]:
    """Fractions in [0, 1]: drawn images that look real; real images that can be drawn."""
    _check_features(real_NF, drawn_NF, least=NUM_NEIGHBOURS + 1)
    real_NF, drawn_NF = real_NF.double(), drawn_NF.double()
    precision, recall = _share_covered(drawn_NF, real_NF), _share_covered(real_NF, drawn_NF)
    return {"precision": precision, "recall": recall}


def _share_covered(points_NF: Tensor, centres_NF: Tensor) -> float:
    """Fraction of the points that lie in the ball of at least one of the centres."""
    own = (torch.cdist(chunk, centres_NF) for chunk in centres_NF.split(500))
    # The nearest neighbour of a centre is itself, at distance 0.
    radius_N = torch.cat([x.kthvalue(NUM_NEIGHBOURS + 1, dim=1).values for x in own])
    found = (torch.cdist(chunk, centres_NF) for chunk in points_NF.split(500))
    covered_N = torch.cat([(x <= radius_N).any(1) for x in found])
    return covered_N.double().mean().item()


def _check_features(real_NF: Tensor, drawn_NF: Tensor, least: int) -> None:
    if not real_NF.ndim == drawn_NF.ndim == 2 or real_NF.shape[1] != drawn_NF.shape[1]:
        shapes = f"{tuple(real_NF.shape)} and {tuple(drawn_NF.shape)}"
        raise ValueError(f"features have shapes {shapes}, expected (N, F) twice with the same F")
    if min(len(real_NF), len(drawn_NF)) < least:
        counts = f"{len(real_NF)} real and {len(drawn_NF)} drawn images"
        raise ValueError(f"got {counts}, expected {least} or more of each")


def nearest_distances(
    images: Tensor, train_images: Tensor, report: Progress = quiet, stage: str = "copies"
) -> Tensor:
    """Euclidean distance (N,) of each uint8 image to the nearest training image, pixels in [0, 1].

    The brute-force product |x|^2 - 2 xy + |y|^2, two thirds faster than ``torch.cdist`` and min.
    """
    half_norm, train_t = _half_norm_and_transpose(train_images)
    nearest: list[Tensor] = []
    for start in range(0, len(images), 250):
        x = images[start : start + 250].flatten(1).float() / 255
        closest = torch.addmm(-half_norm, x, train_t).max(1).values
        nearest.append((x.square().sum(1) - 2 * closest).clamp_min(0).sqrt())
        report(stage, start + len(x), len(images))
    return torch.cat(nearest)


@lru_cache(1)  # reused for the next images
def _half_norm_and_transpose(train_images: Tensor) -> tuple[Tensor, Tensor]:
    train = train_images.flatten(1).float() / 255
    return train.square().sum(1) / 2, train.T.contiguous()


def copy_check(
    drawn: Tensor, train_images: Tensor, held_out_distances: Tensor, report: Progress = quiet
) -> dict[str, float]:
    """Whether drawn images (N, C, H, W) are copies, given held-out ones' ``nearest_distances``.

    Returns:
        ``ratio`` of the median distance to that of the held-out images; well below 1 is copying.
        ``near``: fraction nearer than the nearest 1 % of the held-out images; about 0.01 if new.
        ``exact``: number of images equal to a training image in every pixel.
    """
    distances = nearest_distances(drawn, train_images, report)
    median = held_out_distances.median().item()
    known = {image.tobytes() for image in train_images.flatten(1).numpy()}
    return {
        "ratio": distances.median().item() / median if median else float(distances.median() > 0),
        "near": (distances < held_out_distances.quantile(0.01)).double().mean().item(),
        "exact": sum(image.tobytes() in known for image in drawn.flatten(1).numpy()),
    }
