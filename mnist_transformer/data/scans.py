"""MNIST's program: the function that made every image of MNIST from a black-and-white scan.

A scan is a square of m x m pixels that are paper (0) or ink (1), m about 46. The program
resamples it to 20 x 20 grey pixels and lays these on 28 x 28 pixels of paper:

    area[r, c] = sum over the scan's ink of  w[r, row] * w[c, column]
    level      = 128 + trunc(area * (255 / max(area)) - 128)

w[r, row] is the share of box row r that the scanned row covers, and likewise for columns. A flaw
makes the program recognisable: a scanned row ends after 0.99 of its height, but a row within
one box row counts in full (Yadav and Bottou, "Cold case: the lost MNIST digits", arXiv
1905.10498, section 2). The arithmetic is float32, except where a line says otherwise, and ink
is added one pixel at a time, row by row; any other order gives other bytes. A level is cut to
a whole number as a signed byte, towards 128. ``scan_search`` runs the program backwards.

Shapes: B images, S the side of the canvas, m the side of a scan, k the most scanned rows that
one box row has.
"""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.utils.checks import check_tensor

SIDES = range(20, 129)  # the sides m that a scan may have
BOX = 20  # the side of the grey box
IMAGE = 28  # the side of an image
USUAL_SIDE = 46  # the median side of MNIST's scans
# The least and the largest area of each level, where the brightest box pixel's is 255: levels
# round up below 128, and down from 128 on.
_LEVEL = np.arange(256.0)
LEAST, MOST = (_LEVEL - (_LEVEL <= 128)).clip(0), (_LEVEL + (_LEVEL >= 128)).clip(max=255)


def square(side: int, canvas: int) -> slice:
    """The rows, and likewise the columns, of a scan of this side at the centre of a canvas."""
    start = (canvas - side) // 2
    return slice(start, start + side)


@functools.cache
def weights(side: int, dtype: type = np.float64) -> np.ndarray:
    """The share of each box row that each scanned row covers, float32 (BOX, side).

    ``dtype`` is that of 0.99: a double in the program, as a literal is in C.
    """
    rows = np.arange(side, dtype=np.float32)
    scale = np.float32(BOX) / np.float32(side)
    start = np.float32(BOX / 2) + scale * (rows - np.float32(side) / np.float32(2))
    end = (start + dtype(0.99) * scale.astype(dtype)).astype(np.float32)
    # Rounding takes the first row of some sides below 0 (m = 39).
    first, last = np.floor([start, end]).clip(0, BOX - 1).astype(int)
    shares, row = np.zeros((BOX, side), np.float32), np.arange(side)
    shares[last, row] = end - last
    shares[first, row] = np.where(first < last, first + 1 - start, scale)
    return shares


@functools.cache
def _tables() -> tuple[Tensor, Tensor]:
    """For every side, each box row's scanned rows and their shares, both (sides, BOX, k).

    Rows are in ascending order; a box row with fewer than k has shares of 0 at the end.
    """
    every = (torch.from_numpy(weights(side)) for side in SIDES)
    shares = torch.stack([F.pad(x, (0, SIDES[-1] - x.shape[1])) for x in every])
    rows = (shares == 0).int().sort(stable=True).indices[..., : int((shares > 0).sum(2).max())]
    return rows, shares.gather(2, rows)


def to_boxes(scans: Tensor, sides: Tensor) -> Tensor:
    """Resample scans (B, S, S), uint8 of 0 and 1, of sides (B,) to levels uint8 (B, 20, 20)."""
    rows, shares = (table.to(scans.device)[sides - SIDES.start] for table in _tables())
    used = int((shares > 0).any(1).any(0).sum())  # 4 up to m = 60, 8 for the largest
    rows = rows[..., :used] + ((scans.shape[-1] - sides) // 2)[:, None, None]
    ink = scans.float()
    area = ink.new_zeros(len(scans), BOX, BOX)
    image = torch.arange(len(scans), device=scans.device)[:, None, None]
    # The program's order of additions: by row, then by column.
    for row in range(used):
        for column in range(used):
            share = shares[:, :, row, None] * shares[:, None, :, column]
            area += share * ink[image, rows[:, :, row, None], rows[:, None, :, column]]
    most = area.amax((1, 2), keepdim=True)
    # An empty scan has no brightest pixel; its image is paper.
    most = torch.where(most > 0, most, 1)
    # A tensor as the numerator: torch divides a number by a tensor as number * (1 / tensor).
    level = area * (torch.full_like(most, 255) / most)
    return ((level - 128).trunc() + 128).byte()


def to_images(scans: Tensor, sides: Tensor) -> Tensor:
    """Run MNIST's program.

    Args:
        scans: uint8 (B, S, S) of 0 (paper) and 1 (ink), the squares of the scans centred;
            the rest of the canvas is ignored.
        sides: int64 (B,), the sides m of the squares, each in ``SIDES`` and at most S.

    Returns:
        Images, uint8 (B, 1, 28, 28), byte for byte as MNIST has them.
    """
    canvas = scans.shape[-1]
    check_tensor("scans", scans, torch.uint8, "B", canvas, canvas)
    check_tensor("sides", sides, torch.int64, len(scans))
    least, most = SIDES.start, min(canvas, SIDES.stop - 1)
    if len(wrong := sides[(sides < least) | (sides > most)]):
        raise ValueError(f"a scan's side is {wrong[0].item()}, expected {least} to {most}")
    boxes = to_boxes(scans, sides)
    return place(boxes, *corner(boxes))


def place(boxes: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Images uint8 (B, 1, 28, 28) with boxes (B, 20, 20) at these rows and columns (B,).

    An image shows the part of the box that lies in it.
    """
    wide = boxes.new_zeros(len(boxes), *2 * [IMAGE + 2 * BOX])
    wide[_at(row, column)] = boxes
    return wide[:, None, BOX:-BOX, BOX:-BOX].contiguous()


def _at(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The index of boxes with these corners (B,) in images with ``BOX`` more on each side."""
    image, box = (torch.arange(num, device=row.device) for num in (len(row), BOX))
    image, row, column = (x[:, None, None] + BOX for x in (image - BOX, row, column))
    return image, row + box[:, None], column + box


def corner(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The row and column (B,) of a box's corner that bring its centre of mass to (14, 14)."""
    ink, index = boxes.long(), torch.arange(BOX, device=boxes.device)
    total = ink.sum((1, 2)).clamp(min=1)
    masses = ((ink.sum(axis) * index).sum(1) - IMAGE // 2 * total for axis in (2, 1))
    # round(14 - mean) in integers: the centre of mass is a quotient of them. Halves round down,
    # as all three in MNIST do: images 23,831, 33,691 and 68,688.
    row, column = (-((2 * mass + total) // (2 * total)) for mass in masses)
    return row, column


# --- approximations, for what is not one of MNIST's images ------------------------------------


def shares_on(canvas: int, sides: Tensor) -> Tensor:
    """The shares of canvas rows in box rows, float32 (B, 20, S), for scans of sides (B,)."""
    rows, shares = (table.to(sides.device)[sides - SIDES.start] for table in _tables())
    rows = rows + ((canvas - sides) // 2)[:, None, None]
    return shares.new_zeros(len(sides), BOX, canvas).scatter_add(2, rows, shares)


def preview(scans: Tensor, sides: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """``to_images`` up to rounding, in a tenth of the time, with boxes at these corners (B,)."""
    shares = shares_on(scans.shape[-1], sides)
    area = shares @ scans.float() @ shares.mT
    most = area.amax((1, 2), keepdim=True).clamp(min=0.5)
    return place((area * (255 / most)).clamp(max=255).byte(), row, column)


def enlarge(images: Tensor, canvas: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Approximate scans of any images uint8 (B, 28, 28), by enlarging and a threshold.

    Returns:
        Scans uint8 (B, S, S), their sides, and the rows and columns of their boxes, all (B,).
    """
    index = torch.arange(IMAGE, device=images.device)
    corners = []
    for axis in (2, 1):
        ink = images.amax(axis) > 0
        # Without ink these are 28 and -1, whose middle is the image's.
        first = torch.where(ink, index, IMAGE).amin(1)
        last = torch.where(ink, index, -1).amax(1)
        corners.append(((first + last - BOX + 2) // 2).clamp(0, IMAGE - BOX))
    row, column = corners
    levels = F.pad(images, 4 * [BOX])[_at(row, column)].float()[:, None]
    side = min(USUAL_SIDE, canvas)
    large = F.interpolate(levels, (side, side), mode="bilinear")
    # A stroke's edge, even a pale one's, is at half of the brightest level nearby.
    near = F.max_pool2d(levels, 5, stride=1, padding=2)
    near = F.interpolate(near, (side, side), mode="nearest")
    scans = images.new_zeros(len(images), canvas, canvas)
    inside = square(side, canvas)
    scans[:, inside, inside] = ((large > near / 2) & (large > 16))[:, 0].byte()
    return scans, torch.full_like(row, side), row, column


def kept(mask: Tensor, sides: Tensor, row: Tensor, column: Tensor, canvas: int) -> Tensor:
    """Scanned pixels with no share in a hidden pixel, bool (B, S, S), given a mask (B, 28, 28)."""
    wide = F.pad(mask, 4 * [BOX], value=True)
    touches = (shares_on(canvas, sides) > 0).float()
    return touches.mT @ (~wide[_at(row, column)]).float() @ touches == 0
