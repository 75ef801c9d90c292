"""Inpainting: named holes, completions, and the class that an image may belong to.

A mask is bool (1, H, W), true where a pixel is kept; a hole is where it is false.

Shapes: N images or completions, C classes or channels, H x W pixels.
"""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from mnist_transformer.models.base import GenerativeModel, in_batches
from mnist_transformer.options import PLAIN, Keep, Sampling
from mnist_transformer.utils.images import grid

MAX_DRAWINGS = 1024  # at once, counting each particle; mnist-pixel-3.5m then takes 7 GB
HOLES = ("top", "bottom", "left", "right", "center", "random:SHARE")
HOLE_COLOR = (40, 110, 140)


def hole(name: str, size: int, seed: int = 0) -> Tensor:
    """The mask of a named hole, one of ``HOLES``; ``random:0.5`` hides half of the pixels.

    An unknown name, or a share outside (0, 1] or of no pixel, raises ValueError.
    """
    keep = torch.ones(size, size, dtype=torch.bool)
    half, inner = size // 2, slice(size // 4, size - size // 4)
    places = {
        "top": keep[:half],
        "bottom": keep[half:],
        "left": keep[:, :half],
        "right": keep[:, half:],
        "center": keep[inner, inner],
    }
    kind, _, share = name.partition(":")
    if name in places:
        places[name][:] = False
    elif kind == "random":
        try:
            hidden = float(share)
        except ValueError:
            hidden = 0.0
        if not 0.5 / size**2 < hidden <= 1:
            expected = f"a share in (0, 1] that hides a pixel of {size}x{size}"
            raise ValueError(f"hole is {name!r}, expected random:SHARE with {expected}")
        order = torch.randperm(size * size, generator=torch.Generator().manual_seed(seed))
        keep.view(-1)[order[: round(hidden * size * size)]] = False
    else:
        raise ValueError(f"hole is {name!r}, expected one of {', '.join(HOLES)}")
    return keep[None]


def complete(
    model: GenerativeModel,
    image: Tensor,
    keep: Tensor,
    n: int,
    label: int | None = None,
    seed: int = 0,
    how: Sampling = PLAIN,
) -> Iterator[Tensor]:
    """Canvases uint8 (n, C, H, W) of n completions of one image (C, H, W), the last ones finished.

    Too many at once raise ValueError, as do requests that ``GenerativeModel.steps`` refuses.
    """
    if "num_particles" in model.honours and n * how.num_particles > MAX_DRAWINGS:
        expected = f"expected at most {MAX_DRAWINGS:,} drawings at once"
        raise ValueError(f"n is {n} with {how.num_particles} particles each, {expected}")
    kept = Keep(image.expand(n, -1, -1, -1), keep.expand(n, -1, -1, -1))
    return model.steps(None if label is None else [label] * n, range(seed, seed + n), how, kept)


def class_posterior(model: GenerativeModel, images: Tensor) -> Tensor:
    """p(class | image), float64 (N, C) on the CPU, by Bayes' rule with equal priors.

    Its mean over completions that were drawn without a class estimates p(class | kept pixels). The
    estimate is as good as the completions: they should be drawn at temperature 1 and with many
    particles, and the model without a class should be its mean over all classes.
    """

    def log_prob(images: Tensor) -> Tensor:
        labels = range(model.num_classes)
        return torch.stack([-model.nll(images, [y] * len(images)) for y in labels], dim=1)

    return in_batches(model, log_prob, images, batch_size=100).softmax(-1)


def likeliest(model: GenerativeModel, images: Tensor) -> str | None:
    """The three likeliest classes of completions of one image, such as "3 (87%), 5 (9%)".

    None where the model has no exact likelihood: a bound is too rough for Bayes' rule.
    """
    if model.likelihood != "exact":
        return None
    shares, labels = class_posterior(model, images).mean(0).sort(descending=True)
    best = zip(labels[:3].tolist(), shares.tolist(), strict=False)
    return ", ".join(f"{model.class_names[label]} ({share:.0%})" for label, share in best)


def sheet(image: Tensor, keep: Tensor, completions: Tensor, columns: int) -> Image.Image:
    """A picture of the image, the image with its hole, and the completions (N, C, H, W)."""
    left = torch.stack([image.expand(3, -1, -1), show_hole(image, keep)])
    return grid(torch.cat([left, completions.expand(-1, 3, -1, -1)]), columns, gap=2)


def show_hole(image: Tensor, keep: Tensor) -> Tensor:
    """uint8 (3, H, W): the image with the hole in colour."""
    color = torch.tensor(HOLE_COLOR, dtype=torch.uint8)[:, None, None]
    return torch.where(keep, image.expand(3, -1, -1), color)
