"""Around a hole: pictures and masks from anywhere, completions, and which digit it may be.

A mask is bool (1, H, W), true where a pixel is kept; a hole is where it is false.

Shapes: N completions, C classes, H x W pixels.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from torch import Tensor

from mnist_transformer.images import grid
from mnist_transformer.models.base import GenerativeModel, HasLikelihood, HasPixelNats, in_batches
from mnist_transformer.sampling import Keep, Sampling

HOLES = ("top", "bottom", "left", "right", "center", "random:SHARE")
MAX_PIXELS = 50_000_000  # of a picture that a user gives
INK = 32  # below this a level is paper: noise of a photograph or of JPEG
HOLE_COLOR = (40, 110, 140)


def hole(name: str, size: int, seed: int = 0) -> Tensor:
    """The mask of a named hole, one of ``HOLES``; ``random:0.5`` hides half of the pixels.

    Raises:
        ValueError: an unknown name, or a share outside (0, 1] or of no pixel.
    """
    keep = torch.ones(1, size, size, dtype=torch.bool)
    half, quarter = size // 2, size // 4
    places = {
        "top": (slice(0, half), slice(None)),
        "bottom": (slice(half, None), slice(None)),
        "left": (slice(None), slice(0, half)),
        "right": (slice(None), slice(half, None)),
        "center": (slice(quarter, size - quarter), slice(quarter, size - quarter)),
    }
    kind, _, share = name.partition(":")
    if name in places:
        keep[0][places[name]] = False
    elif kind == "random":
        try:
            hidden = float(share)
        except ValueError:
            hidden = 0.0
        if not 0 < hidden <= 1:
            raise ValueError(f"hole is {name!r}, expected random:SHARE with a share in (0, 1]")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(size * size, generator=generator)
        keep.view(-1)[order[: round(hidden * size * size)]] = False
        if keep.all():
            raise ValueError(f"hole is {name!r}, which hides no pixel of {size}x{size}")
    else:
        raise ValueError(f"hole is {name!r}, expected one of {', '.join(HOLES)}")
    return keep


def read_picture(path: Path, size: int) -> tuple[Tensor, list[str]]:
    """A picture file as an image uint8 (1, size, size), light on black; and what was changed.

    Raises:
        ValueError: the file is no picture, or too large a one.
        OSError: it cannot be read.
    """
    return to_image(_open(path), size)


def to_image(picture: Image.Image, size: int) -> tuple[Tensor, list[str]]:
    """A picture as an image uint8 (1, size, size), light on black; and what was changed.

    A picture of another size is brought to full contrast, and its paper made black.
    """
    changes = []
    grey = _grey(picture)
    levels = np.asarray(grey)
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    if border.mean() > 127:
        grey = ImageOps.invert(grey)
        changes.append("inverted, since the paper is white")
    if grey.size != (size, size):
        changes.append(f"scaled from {grey.width}x{grey.height} to {size}x{size}")
        scaled = _square(grey).resize((size, size), Image.Resampling.BOX)
        # What was enlarged pixel by pixel, as our own drawings are, comes back as it was.
        if ImageChops.difference(
            scaled.resize(grey.size, Image.Resampling.NEAREST), grey
        ).getbbox():
            scaled = ImageOps.autocontrast(scaled)
            scaled = scaled.point(lambda level: level if level >= INK else 0)
        grey = scaled
    return torch.tensor(np.array(grey))[None], changes


def read_mask(path: Path, size: int) -> Tensor:
    """A picture file as a mask: what is white is the hole.

    Raises:
        ValueError: the file is no picture, is too large, or hides nothing.
        OSError: it cannot be read.
    """
    grey = _square(_grey(_open(path))).resize((size, size), Image.Resampling.BOX)
    keep = torch.tensor(np.array(grey))[None] < 128
    if keep.all():
        raise ValueError(f"{path} is nowhere white, expected white where the hole is")
    return keep


def complete(
    model: GenerativeModel,
    image: Tensor,
    keep: Tensor,
    *,
    n: int,
    label: int | None = None,
    seed: int = 0,
    how: Sampling | None = None,
) -> Iterator[Tensor]:
    """Canvases uint8 (n, C, H, W) of n completions of one image, the last ones finished.

    Args:
        image: uint8 (C, H, W).
        keep: bool (1, H, W).
        label: the digit; None if it is unknown.
    """
    many = Keep(image.expand(n, -1, -1, -1), keep.expand(n, -1, -1, -1))
    labels = None if label is None else [label] * n
    return model.steps(labels, range(seed, seed + n), how, many)


def class_posterior(model: GenerativeModel, images: Tensor, batch_size: int = 100) -> Tensor:
    """p(class | image), float64 (N, C) on the CPU, by Bayes' rule with equal priors.

    Averaged over completions that were drawn without a class, it is p(class | kept pixels).

    Raises:
        ValueError: the model has no likelihood.
    """
    if not isinstance(model, HasLikelihood):
        raise ValueError(f"{type(model).__name__} has no likelihood to infer a class with")

    def log_prob(images: Tensor) -> Tensor:
        labels = range(model.num_classes)
        return torch.stack([-model.nll(images, [y] * len(images)).nats for y in labels], dim=1)

    return in_batches(model, log_prob, images, batch_size=batch_size).softmax(-1)


def likeliest(model: GenerativeModel, images: Tensor) -> str | None:
    """The three likeliest classes of what the images have in common, such as "3 (87%), 5 (9%)".

    None where the model has no exact likelihood: a bound, drawn at random, is too rough.
    """
    if not isinstance(model, HasPixelNats):
        return None
    posterior = class_posterior(model, images).mean(0)
    order = posterior.argsort(descending=True)[:3].tolist()
    return ", ".join(f"{label} ({posterior[label]:.0%})" for label in order)


def sheet(image: Tensor, keep: Tensor, completions: Tensor, columns: int) -> Image.Image:
    """A picture of the image, of it with its hole, and of the completions (N, C, H, W)."""
    left = torch.stack([image.expand(3, -1, -1), show_hole(image, keep)])
    return grid(torch.cat([left, completions.expand(-1, 3, -1, -1)]), columns, gap=2)


def show_hole(image: Tensor, keep: Tensor) -> Tensor:
    """uint8 (3, H, W): the image with the hole in colour."""
    color = torch.tensor(HOLE_COLOR, dtype=torch.uint8)[:, None, None]
    return torch.where(keep, image.expand(3, -1, -1), color)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"{path} has {picture.width}x{picture.height} pixels, "
                    f"expected at most {MAX_PIXELS:,}"
                )
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read, expected PNG or JPEG") from error
    except OSError as error:
        if error.errno is None:  # Pillow's way to say that the file is damaged
            raise ValueError(f"{path} is damaged: {error}") from error
        raise


def _grey(picture: Image.Image) -> Image.Image:
    """Levels of grey; what is transparent is paper, white as a page."""
    if picture.has_transparency_data:
        page = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(page, picture.convert("RGBA"))
    return picture.convert("L")


def _square(grey: Image.Image) -> Image.Image:
    """Centred on black, as wide as high."""
    side = max(grey.size)
    return ImageOps.pad(grey, (side, side), color=0)
