"""The choice, among the scans that give an image, of one that is likely as handwriting.

Many scans give the same 784 bytes, as scanned pixels in one box pixel often have the same weight.
``to_scan`` takes one with the shortest outline. Here an inked pixel and a blank one near it trade
places wherever the bytes stay the same and the scan gets more probable. Probabilities come from
``scan_coder.count``: how often a pixel of the training scans was ink in a context.

Shapes: m side, N pairs of pixels, K pixels whose probability depends on a pixel.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_transformer.data import scan_coder
from mnist_transformer.data.scan_coder import NEIGHBOURS, REACH
from mnist_transformer.data.scans import LEAST, MOST, to_boxes, weights

APART = 12  # pixels between pairs that are traded at once; no context holds pixels of two
NEAR = 5  # pixels, rows or columns between two that trade places
MAX_SWEEPS = 6
ROUNDING = 1e-6  # of an area in float32

_SEEN = np.array([*NEIGHBOURS, (0, 0)])  # a pixel's context, then the pixel itself
_DECIDES = -np.roll(_SEEN, 1, axis=0)  # a pixel itself, then those in whose context it is
_POWERS = 1 << np.arange(len(_SEEN))

Ink = NDArray[np.uint8]
Pixels = NDArray[np.int64]


def count(groups: Iterable[Ink]) -> NDArray[np.float64]:
    """Nats of paper and of ink in each context, from counts over groups of scans (N, m, m)."""
    seen = sum(map(scan_coder.count, groups), np.zeros((2, 1 << len(NEIGHBOURS))))
    counts = seen + 0.4  # near Krichevsky and Trofimov's half a count
    return -np.log(counts / counts.sum(0)).ravel()


def likelier(ink: Ink, nats: NDArray[np.float64]) -> Ink:
    """A scan (m, m) of 0 and 1 that gives the same image, in at most as many nats as this one."""
    ink, levels = ink.copy(), _levels(ink)
    for _ in range(MAX_SWEEPS):
        pairs = _pairs(ink)
        pairs = pairs[_keeps_levels(ink, levels, pairs)]
        gains = _gains(ink, pairs, nats)
        traded: list[Pixels] = []
        for index in np.argsort(-gains):
            if gains[index] < 1e-3:
                break
            # Gains add up only if pairs are that far apart.
            if any(abs(pairs[index][:, None] - other).max(-1).min() <= APART for other in traded):
                continue
            trial = ink.copy()
            trial[tuple(pairs[index].T)] ^= 1
            if np.array_equal(_levels(trial), levels):
                ink = trial
                traded.append(pairs[index])
        if not traded:
            break
    return ink


def _levels(ink: Ink) -> Ink:
    return to_boxes(torch.from_numpy(ink)[None], torch.tensor([len(ink)]))[0].numpy()


def _pairs(ink: Ink) -> Pixels:
    """An inked and a blank pixel on the outline, near each other: int64 (N, 2, 2)."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(ink, 1), (3, 3))
    outline = around.min((2, 3)) != around.max((2, 3))
    inked, blank = (np.argwhere(outline & (ink == value)) for value in (1, 0))
    first, second = np.nonzero(abs(inked[:, None] - blank).max(-1) <= NEAR)
    return np.stack([inked[first], blank[second]], 1)


def _keeps_levels(ink: Ink, levels: Ink, pairs: Pixels) -> NDArray[np.bool_]:
    """Whether the levels stay the same, up to rounding, if two pixels trade places: (N,)."""
    shares = weights(len(ink)).astype(np.float64)
    area = shares @ ink @ shares.T
    unit = area.max() / 255
    # All levels are relative to the brightest area.
    most = np.where(area == area.max(), levels, MOST[levels])
    row, column = np.moveaxis(pairs, -1, 0)
    changes = np.einsum("xnp,ynp,p->nxy", shares[:, row], shares[:, column], [-1.0, 1.0])
    # An area may lie a rounding error outside; leaving it unchanged is always allowed.
    low = np.minimum(LEAST[levels] * unit - area, -ROUNDING)
    high = np.maximum(most * unit - area, ROUNDING)
    return ((changes >= low) & (changes <= high)).all((1, 2))


def _gains(ink: Ink, pairs: Pixels, nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats that a scan saves if two pixels trade places, (N,)."""
    decided = (pairs[:, :, None] + _DECIDES).reshape(len(pairs), 2 * len(_DECIDES), 2)  # (N, K, 2)
    inside = ((decided >= 0) & (decided < len(ink))).all(-1)
    own, other = np.split(decided, 2, axis=1)
    inside[:, len(_DECIDES) :] &= ~(other[:, :, None] == own[:, None]).all(-1).any(-1)  # only once
    seen = decided[:, :, None] + _SEEN
    flipped = (seen[:, :, :, None] == pairs[:, None, None]).all(-1).any(-1)
    wide = np.pad(ink, 2 * REACH).astype(np.int64)
    row, column = np.moveaxis(seen.clip(-2 * REACH, len(ink) + 2 * REACH - 1) + 2 * REACH, -1, 0)
    values = wide[row, column]
    before, after = ((x * _POWERS).sum(-1) for x in (values, values ^ flipped))
    return ((nats[before] - nats[after]) * inside).sum(1)
