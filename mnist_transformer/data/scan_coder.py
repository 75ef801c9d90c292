"""A lossless code for black-and-white pictures, in the manner of JBIG, without a network.

A pixel's context is its 20 nearest neighbours among those above it and to its left. The chance of
ink is estimated from counts in the earlier pictures. A rarely seen context falls back on fewer,
nearer neighbours: with k of them, ``ink`` of ``seen`` pixels were ink,

    p_k = (ink_k + PRIOR * p_(k-1)) / (seen_k + PRIOR),    p_(-1) = 1/2

An entropy coder turns the chances into bits (range ANS: Duda, arXiv 1311.2540): a state x holds a
picture's bits so far as one number, and a pixel of chance f / 2^16 makes it 2^16 / f times as
large. Every picture has a state of its own, a lane, and all lanes of a group advance by one pixel
at once; they share one stream of words (Giesen, arXiv 1402.3392). The library ``constriction``
cannot do that: contexts are known only once the pixels before are decoded, so it would be called
from Python for every pixel, 150 million times for MNIST.

Shapes: a group is N pictures (N, H, W) of one size, uint8 of 0 and 1. All pictures of a group are
coded with the counts of the groups before it, so small groups come first.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

REACH = 4  # rows and columns that a neighbour may be away
NUM_NEIGHBOURS = 20
PRIOR = 2.0  # weight, in pixels, of the estimate from nearer neighbours
WORD = 16  # bits: of a chance, and of what a state gives to the stream or takes from it
ONE = 1 << WORD  # a state is at least this, and below its square

_BEFORE = [(y, x) for y in range(-REACH, 1) for x in range(-REACH, REACH + 1) if (y, x) < (0, 0)]
NEIGHBOURS = sorted(_BEFORE, key=lambda at: at[0] ** 2 + at[1] ** 2)[:NUM_NEIGHBOURS]
# Neighbours in the same row: the bit, and how far left.
_LEFT = [(bit, -x) for bit, (y, x) in enumerate(NEIGHBOURS) if y == 0]
# The context bits of the last few pixels of a row, indexed by those pixels, newest lowest.
_LAST = np.arange(1 << _LEFT[-1][1], dtype=np.uint32)
_LEFT_BITS = np.bitwise_or.reduce([(_LAST >> (back - 1) & 1) << bit for bit, back in _LEFT])

Pictures = NDArray[np.uint8]
Counts = NDArray[np.int64]  # (2, contexts): pixels of paper and of ink


def encode(groups: Sequence[Pictures]) -> bytes:
    """The code of the pictures."""
    # A state gives its bits back in reverse, so coding runs from the end to the start.
    counts = sum(map(count, groups), np.zeros((2, 1 << NUM_NEIGHBOURS), np.int64))
    states = np.full(max(map(len, groups), default=0), ONE, np.uint32)
    words: list[NDArray[Any]] = [np.zeros(0, np.uint32)]
    for group in reversed(groups):
        counts -= count(group)
        chances, contexts = _chances(counts), _contexts(_with_paper(group))
        state = states[: len(group)]
        for y, x in reversed(list(np.ndindex(group.shape[1:]))):
            ink, chance = group[:, y, x], chances[contexts[y, x]]
            share = np.where(ink, chance, ONE - chance)
            full = state >= share << WORD
            words.append(state[full][::-1] & (ONE - 1))
            state[full] >>= WORD
            state[:] = (state // share << WORD) + state % share + chance * (1 - ink)
    stream = np.concatenate(words)[::-1]
    return states.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


def decode(code: bytes, shapes: Sequence[tuple[int, int, int]]) -> Iterator[Pictures]:
    """The groups of these shapes, in the order that they were coded in."""
    num_lanes = max((shape[0] for shape in shapes), default=0)
    states = np.frombuffer(code, "<u4", num_lanes).astype(np.uint32)
    words = np.frombuffer(code, "<u2", offset=4 * num_lanes).astype(np.uint32)
    counts = np.zeros((2, 1 << NUM_NEIGHBOURS), np.int64)
    taken = 0
    for shape in shapes:
        chances, paper = _chances(counts), _with_paper(np.zeros(shape, np.uint8))
        state = states[: shape[0]]
        for y in range(shape[1]):
            (above,) = _contexts(paper[y : y + REACH + 1])  # the row itself is paper so far
            last = np.zeros(shape[0], np.uint32)
            for x in range(shape[2]):
                chance = chances[above[x] | _LEFT_BITS[last]]
                high, low = state >> WORD, state & (ONE - 1)
                ink = low < chance
                state[:] = np.where(ink, chance * high + low, (ONE - chance) * high + low - chance)
                short = np.flatnonzero(state < ONE)
                state[short] = state[short] << WORD | words[taken : taken + len(short)]
                taken += len(short)
                last = (last << 1 | ink) & (len(_LEFT_BITS) - 1)
                paper[REACH + y, REACH + x] = ink
        group = paper[REACH:, REACH:-REACH].transpose(2, 0, 1)
        counts += count(group)
        yield group


def _with_paper(group: Pictures) -> Pictures:
    """The pictures as (H, W, N), with paper above, left and right of them."""
    return np.pad(group, ((0, 0), (REACH, 0), (REACH, REACH))).transpose(1, 2, 0).copy()


def _contexts(paper: Pictures) -> NDArray[np.uint32]:
    """The contexts of pixels (H, W, N) with paper around: a bit for each neighbour."""
    height, width = paper.shape[0] - REACH, paper.shape[1] - 2 * REACH
    contexts = np.zeros((height, width, paper.shape[2]), np.uint32)
    for bit, (up, left) in enumerate(NEIGHBOURS):
        row, column = REACH + up, REACH + left
        found = paper[row : row + height, column : column + width]
        contexts |= found.astype(np.uint32) << np.uint32(bit)
    return contexts


def count(group: Pictures) -> Counts:
    """How often each context has paper and ink in these pictures."""
    kinds = _contexts(_with_paper(group))
    kinds |= group.transpose(1, 2, 0).astype(np.uint32) << np.uint32(NUM_NEIGHBOURS)
    return np.bincount(kinds.ravel(), minlength=2 << NUM_NEIGHBOURS).reshape(2, -1)


def _chances(counts: Counts) -> NDArray[np.uint32]:
    """The chance of ink in each context, as a multiple of 2^-16, never 0 or 1.

    It uses only sums, products and quotients of two doubles, which every machine rounds alike.
    """
    levels = [counts]  # the contexts of fewer and fewer neighbours
    while levels[-1].shape[1] > 1:
        levels.append(levels[-1].reshape(2, 2, -1).sum(1))
    chances = np.array([0.5])
    for paper, ink in reversed(levels):
        chances = (ink + PRIOR * np.resize(chances, len(ink))) / (paper + ink + PRIOR)
    return (chances * ONE).astype(np.uint32).clip(1, ONE - 1)
