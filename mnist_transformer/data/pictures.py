"""A user's pictures as images (photographs, or light ink on black) and as masks.

A mask is bool (1, H, W), true where a pixel is kept; a hole is where it is false.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageFilter, ImageOps
from torch import Tensor

from mnist_transformer.data.spec import DataSpec
from mnist_transformer.utils.images import opened

MAX_ASPECT = 10
LARGE = 1000  # pixels; a picture twice as long is reduced first, to save memory
INK = 32  # below this a level is paper: noise of a photograph or of JPEG
WIDER_THAN_A_STROKE = 13  # pixels of a scaled picture, an odd number
HIDDEN_FROM = 64  # of 255: how much of a pixel a mask has to cover to hide it


def to_image_of(
    data: DataSpec, picture: Image.Image, name: str = "picture"
) -> tuple[Tensor, list[str]]:
    """A picture as an image uint8 (C, H, W) of a data set; and the changes made.

    Ink becomes light on black: see ``to_image``. A photograph keeps the square at its centre.
    """
    channels, size, _ = data.shape
    if data.is_ink:
        return to_image(picture, size, name)
    image = torch.tensor(square(picture, size, "RGB" if channels == 3 else "L")[:channels])
    changes = ["cropped to the square at its centre"] * (picture.width != picture.height)
    if picture.size != (size, size):
        changes.append(f"scaled from {picture.width}x{picture.height} to {size}x{size}")
    return image, changes


def square(picture: Image.Image, size: int, mode: str) -> NDArray[np.uint8]:
    """The square at a picture's centre, uint8 (3, size, size); transparent parts are white."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    small = picture.resize((size, size), Image.Resampling.BOX, (left, top, left + side, top + side))
    if small.has_transparency_data:
        small = laid_on("white", small)
    return np.asarray(small.convert(mode).convert("RGB")).transpose(2, 0, 1)


def to_image(picture: Image.Image, size: int, name: str = "picture") -> tuple[Tensor, list[str]]:
    """A picture as an image uint8 (1, size, size), light on black; and the changes made.

    An image of this size that is light on black stays unchanged, even if it was enlarged pixel
    by pixel, as our own drawings are. In any other, the paper is made black, however it is lit,
    and the ink is brought to full contrast. A blank picture raises ValueError.
    """
    grey, changes = _grey(picture)
    levels = np.asarray(grey)
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    paper = int(np.median(border))
    scaled = ImageOps.pad(grey, (size, size), Image.Resampling.BOX, color=paper)
    found = np.asarray(scaled)
    low, high = int(found.min()), int(found.max())
    # The same pixels, only enlarged: nothing was interpolated.
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


def read_mask(path: Path, size: int, shape: tuple[int, int], *, crop: bool = False) -> Tensor:
    """A picture file as a mask, white where the hole is.

    It is square, or has the (width, height) ``shape`` of the picture that it belongs to, within
    a pixel of ``size``. Another shape, or a mask that hides nothing, raises ValueError; other
    errors are ``open_picture``'s.
    """
    mask, _ = open_picture(path)
    if mask.has_transparency_data:
        mask = laid_on("black", mask)
    stretch = mask.width * shape[1] / (mask.height * shape[0])
    if mask.width != mask.height and abs(stretch - 1) > 1 / size:
        expected = f"expected a square or the shape of the picture, {shape[0]}x{shape[1]}"
        raise ValueError(f"{path} has {mask.width}x{mask.height} pixels, {expected}")
    hidden = mask.convert("L")
    if crop:  # as its photograph is
        hidden = Image.fromarray(square(hidden, size, "L")[0])
    keep = to_mask(hidden, size)
    if keep.all():
        raise ValueError(f"{path} hides no pixel of {size}x{size}, expected a white hole")
    return keep


def to_mask(hidden: Image.Image, size: int) -> Tensor:
    """A grey picture, white where it hides, as a mask; a quarter of a pixel covered hides it."""
    scaled = ImageOps.pad(hidden, (size, size), Image.Resampling.BOX, color=0)
    return torch.tensor(np.array(scaled))[None] < HIDDEN_FROM


def open_picture(path: Path, near: int | None = None) -> tuple[Image.Image, list[str]]:
    """A picture file, upright and of moderate size, and the changes made in reading it.

    It is grey, RGB or RGBA. A file that is not a picture, too large or too narrow raises
    ValueError; one that cannot be read raises OSError. ``near``: the pixels per side that are
    needed; any aspect ratio is then allowed, and a JPEG is decoded at a reduced size.
    """
    with opened(path) as picture:
        # A photograph in several sizes (MPO) is one picture.
        moves = getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO"
        changes = ["taken from its first frame"] if moves else []
        if near is not None:
            picture.draft(None, (near, near))
        picture.load()
        upright, made = _moderate(picture, exact=near is not None)
        turned = picture.getexif().get(ExifTags.Base.Orientation)
        if turned in range(2, 9):
            exif = Image.Exif()  # without other entries, which may be damaged
            exif[ExifTags.Base.Orientation] = turned
            upright.info["exif"] = exif.tobytes()
            upright = ImageOps.exif_transpose(upright)
            changes.append("turned upright")
        changes += made
    if near is None and max(picture.size) > MAX_ASPECT * min(picture.size):
        expected = f"expected at most {MAX_ASPECT} times as long as wide"
        raise ValueError(f"{path} has {picture.width}x{picture.height} pixels, {expected}")
    return upright, changes


def laid_on(page: str, picture: Image.Image) -> Image.Image:
    """The picture in RGB, on a page of that colour where it is transparent."""
    blank = Image.new("RGBA", picture.size, page)
    return Image.alpha_composite(blank, picture.convert("RGBA")).convert("RGB")


def _grey(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """Levels of grey, and the changes made; transparent parts become paper."""
    picture, changes = _moderate(picture)
    if picture.has_transparency_data:
        levels, alpha = (np.asarray(x, dtype=float) for x in picture.convert("LA").split())
        page = "black" if (levels * alpha).sum() > 127 * alpha.sum() else "white"
        picture = laid_on(page, picture)
        changes.append(f"laid on a {page} page")
    grey = picture.convert("L")
    if ImageChops.difference(grey.convert("RGB"), picture.convert("RGB")).getbbox():
        changes.append("made grey")
    return grey, changes


def _moderate(picture: Image.Image, *, exact: bool = False) -> tuple[Image.Image, list[str]]:
    """The picture in grey, RGB or RGBA, reduced if it is large; and the changes made.

    16 bits become 8 by stretching the levels that occur, or if ``exact`` the full range.
    """
    factor, changes = max(1, max(picture.size) // LARGE), []
    if picture.mode == "F" or picture.mode.startswith("I"):  # 16 bits and more
        values = np.asarray(picture.convert("F").reduce(factor), dtype=float)
        values = np.nan_to_num(values, posinf=0, neginf=0)
        exact = exact and picture.mode != "F"
        low, high = (0, 65535) if exact else (values.min(), values.max())
        values = ((values - low) * (255 / max(high - low, 1e-9))).clip(0, 255)
        reduced = Image.fromarray(values.round().astype(np.uint8))
        changes.append(f"brought from levels of {low:g} to {high:g} to 0 to 255")
    else:
        opaque = "L" if picture.mode in ("1", "L") else "RGB"
        mode = "RGBA" if picture.has_transparency_data else opaque
        reduced = (picture if picture.mode == mode else picture.convert(mode)).reduce(factor)
    if factor > 1:
        changes.append(f"reduced {factor} times, from {picture.width}x{picture.height}")
    return reduced, changes


def _clean(scaled: Image.Image) -> Image.Image:
    """Light ink of full contrast on paper that is black throughout."""
    # A morphological opening estimates the light on the paper (a white top-hat transform).
    darkest = scaled.filter(ImageFilter.MinFilter(WIDER_THAN_A_STROKE))
    paper = darkest.filter(ImageFilter.MaxFilter(WIDER_THAN_A_STROKE))
    ink = ImageOps.autocontrast(ImageChops.subtract(scaled, paper))
    return ink.point(lambda level: level if level >= INK else 0)
