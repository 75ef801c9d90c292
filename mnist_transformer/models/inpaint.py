"""Around a hole: pictures and masks from anywhere, completions, and which digit it may be.

A mask is bool (1, H, W), true where a pixel is kept; a hole is where it is false.

Shapes: N completions, C classes, H x W pixels.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor

from mnist_transformer.models.base import GenerativeModel, in_batches
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.utils.images import grid

MAX_DRAWINGS = 1024  # at once, each particle being one; mnist-pixel-3.5m then takes 7 GB
HOLES = ("top", "bottom", "left", "right", "center", "random:SHARE")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")  # of pictures that a user gives
MAX_PIXELS, MAX_ASPECT = 50_000_000, 10
INK = 32  # below this a level is paper: noise of a photograph or of JPEG
WIDER_THAN_A_STROKE = 13  # pixels of a scaled picture, an odd number
HIDDEN_FROM = 64  # of 255: how much of a pixel a mask has to cover to hide it
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
        ValueError: the file is no picture, too large or too narrow a one, or blank.
        OSError: it cannot be read.
    """
    picture, turned = _open(path)
    image, changes = to_image(picture, size, str(path))
    return image, turned + changes


def to_image(
    picture: Image.Image, size: int, name: str = "the picture"
) -> tuple[Tensor, list[str]]:
    """A picture as an image uint8 (1, size, size), light on black; and what was changed.

    An image of this size that is light on black stays as it is, also where it was enlarged pixel
    by pixel, as our own drawings are. Of any other the paper is made black, however it is lit,
    and the ink brought to full contrast.

    Raises:
        ValueError: the picture is blank.
    """
    grey, changes = _grey(picture)
    levels = np.asarray(grey)
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    paper = int(np.median(border))
    scaled = ImageOps.pad(grey, (size, size), Image.Resampling.BOX, color=paper)
    found = np.asarray(scaled)
    low, high = int(found.min()), int(found.max())
    # Pixel by pixel the same, but for its size: nothing was made up in between.
    same = scaled.resize(grey.size, Image.Resampling.NEAREST)
    is_digit = ImageChops.difference(same, grey).getbbox() is None
    if paper - low > high - paper:  # most that differs from the paper is darker
        scaled, paper = ImageOps.invert(scaled), 255 - paper
        changes.append("inverted, since the paper is lighter than the ink")
    if grey.size != scaled.size:
        changes.append(f"scaled from {grey.width}x{grey.height} to {size}x{size}")
    if not (is_digit and paper == 0):
        scaled = _clean(scaled)
        changes.append("brought to full contrast on black paper")
    if high - low < INK or not scaled.getbbox():
        raise ValueError(f"{name} is blank, expected a digit: its levels are {low} to {high}")
    return torch.tensor(np.array(scaled))[None], changes


def read_mask(path: Path, size: int, picture_path: Path) -> Tensor:
    """A picture file as a mask: what is white is the hole.

    Args:
        picture_path: the picture that it belongs to, whose shape it has; or it is square, as
            what becomes of the picture.

    Raises:
        ValueError: the file is no picture, has a wrong size or shape, or hides nothing.
        OSError: it cannot be read.
    """
    mask, picture = _open(path)[0], _open(picture_path)[0]
    if mask.has_transparency_data:
        mask = laid_on("black", mask)
    if mask.width != mask.height and _fitted(mask, size) != _fitted(picture, size):
        raise ValueError(
            f"{path} has {mask.width}x{mask.height} pixels, expected a square or the shape of "
            f"{picture_path}, {picture.width}x{picture.height}"
        )
    keep = to_mask(mask.convert("L"), size)
    if keep.all():
        raise ValueError(f"{path} hides no pixel of {size}x{size}, expected white in the hole")
    return keep


def to_mask(hidden: Image.Image, size: int) -> Tensor:
    """Levels of grey, white where something is hidden, as a mask: false from a quarter on."""
    scaled = ImageOps.pad(hidden, (size, size), Image.Resampling.BOX, color=0)
    return torch.tensor(np.array(scaled))[None] < HIDDEN_FROM


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

    Raises:
        ValueError: as in ``GenerativeModel.steps``, or too many at once.
    """
    how = how or Sampling()
    if "num_particles" in model.honours and n * how.num_particles > MAX_DRAWINGS:
        raise ValueError(
            f"n is {n} with {how.num_particles} particles each, "
            f"expected at most {MAX_DRAWINGS:,} drawings at once"
        )
    many = Keep(image.expand(n, -1, -1, -1), keep.expand(n, -1, -1, -1))
    labels = None if label is None else [label] * n
    return model.steps(labels, range(seed, seed + n), how, many)


def class_posterior(model: GenerativeModel, images: Tensor, batch_size: int = 100) -> Tensor:
    """p(class | image), float64 (N, C) on the CPU, by Bayes' rule with equal priors.

    Averaged over completions that were drawn without a class, it estimates p(class | kept pixels),
    as well as these follow p(completion | kept pixels): at temperature 1, with many particles, and
    where the model without a class is the mean of what it is with each.

    Raises:
        ValueError: the model has no likelihood.
    """
    if model.likelihood is None:
        raise ValueError(f"{type(model).__name__} has no likelihood to infer a class with")

    def log_prob(images: Tensor) -> Tensor:
        labels = range(model.num_classes)
        return torch.stack([-model.nll(images, [y] * len(images)) for y in labels], dim=1)

    return in_batches(model, log_prob, images, batch_size=batch_size).softmax(-1)


def likeliest(model: GenerativeModel, images: Tensor) -> str | None:
    """The three likeliest classes of what the images have in common, such as "3 (87%), 5 (9%)".

    None where the model has no exact likelihood: a bound, drawn at random, is too rough.
    """
    if model.likelihood != "exact":
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


def _open(path: Path) -> tuple[Image.Image, list[str]]:
    """A picture file, and what was changed in reading it."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            # A photograph in several sizes (MPO) is one picture.
            moves = getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO"
            changes = ["taken from its first frame"] if moves else []
            picture.load()
            if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                changes.append("turned upright")
            upright = ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has over {MAX_PIXELS:,} pixels, expected fewer") from error
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read, expected PNG or JPEG") from error
    except ValueError as error:  # a limit of Pillow's own
        raise ValueError(f"{path} is damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # Pillow's way to say that the file is damaged
            raise ValueError(f"{path} is damaged: {error}") from error
        raise
    if max(upright.size) > MAX_ASPECT * min(upright.size):
        raise ValueError(
            f"{path} has {upright.width}x{upright.height} pixels, expected a digit: at most "
            f"{MAX_ASPECT} times as long as wide"
        )
    return upright, changes


def _grey(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """Levels of grey, and what was changed; what is transparent is paper."""
    changes = []
    if picture.has_transparency_data:
        levels, alpha = (np.asarray(x, dtype=float) for x in picture.convert("LA").split())
        light = (levels * alpha).sum() > 127 * alpha.sum()
        page = "black" if light else "white"
        picture = laid_on(page, picture)
        changes.append(f"laid on a {page} page")
    if picture.mode == "F" or picture.mode.startswith("I"):  # 16 bits and more
        values = np.nan_to_num(np.asarray(picture, dtype=float))
        low, high = values.min(), values.max()
        values = (values - low) * (255 / max(high - low, 1e-9))
        picture = Image.fromarray(values.round().astype(np.uint8))
        changes.append(f"brought from levels of {low:g} to {high:g} to 0 to 255")
    grey = picture.convert("L")
    if ImageChops.difference(grey.convert("RGB"), picture.convert("RGB")).getbbox():
        changes.append("made grey")
    return grey, changes


def laid_on(page: str, picture: Image.Image) -> Image.Image:
    """The picture in RGB, on a page of that colour where it is transparent."""
    blank = Image.new("RGBA", picture.size, page)
    return Image.alpha_composite(blank, picture.convert("RGBA")).convert("RGB")


def _fitted(picture: Image.Image, size: int) -> tuple[int, int]:
    """Width and height where the longer one becomes ``size``."""
    longer = max(picture.size)
    return round(size * picture.width / longer), round(size * picture.height / longer)


def _clean(scaled: Image.Image) -> Image.Image:
    """Light ink of full contrast on paper that is black throughout."""
    # What is wider than a stroke is the light on the paper (a white top-hat transform).
    darkest = scaled.filter(ImageFilter.MinFilter(WIDER_THAN_A_STROKE))
    paper = darkest.filter(ImageFilter.MaxFilter(WIDER_THAN_A_STROKE))
    ink = ImageOps.autocontrast(ImageChops.subtract(scaled, paper))
    return ink.point(lambda level: level if level >= INK else 0)
