"""The neighbourhood that a patch model sees, and the two heads that predict from it.

A patch's values are drawn in raster order, those of one pixel channel by channel (R, G, B). The
*gate* predicts whether a patch is all background. The *value head* predicts each value from the
transformer's state and from the values drawn before it, through a window whose weights all
positions share: a masked network as in MADE (arXiv 1502.03509).

Shapes: B batch, P patches, N patches of many images, S slots of a neighbourhood (the last I are
the patch's own), I = C*s*s values of a patch, E features of a value, W width, V levels, D dim.
"""

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.networks.transformer import MLP, rms_norm


def value_features(num_levels: int, background: int | None) -> Tensor:
    """Features (V + 1, E) of each level; those of row V, outside the canvas, are zero.

    Inside, not the background, the level itself, and its sines and cosines at octaves up to the
    Nyquist frequency: neighbouring levels are alike, yet none is confused with another.
    """
    level = torch.arange(num_levels).double()[:, None]
    ink = [] if background is None else [(level != background).double()]
    octave = 2 ** torch.arange(int(math.log2(num_levels)))
    angle = 2 * math.pi * level * octave / num_levels
    sines = angle[:, : math.ceil(math.log2(num_levels)) - 1].sin()  # zero at the Nyquist frequency
    columns = [torch.ones_like(level), *ink, level / (num_levels - 1), angle.cos(), sines]
    # V columns tell V levels apart; more would only repeat them.
    return F.pad(torch.cat(columns, 1)[:, :num_levels], (0, 0, 0, 1)).float()


class Neighbourhood(nn.Module):
    """The slots around each patch: ``margin`` rows above, ``margin`` columns left, the patch."""

    features: Tensor
    slot_index: Tensor

    def __init__(
        self, image_shape: tuple[int, int, int], patch_size: int, margin: int, features: Tensor
    ) -> None:
        super().__init__()
        channels, height, width = self.image_shape = image_shape
        size, self.margin = patch_size, margin
        self.grid = height // size, width // size
        self.num_patches, self.num_own = self.grid[0] * self.grid[1], channels * size * size
        above = product(range(-margin, 0), range(-margin, size + margin), range(channels))
        left = product(range(size), range(-margin, 0), range(channels))
        own = product(range(size), range(size), range(channels))
        self.slots = np.array([*above, *left, *own])  # row, column and channel from the corner
        self.num_before = len(self.slots) - self.num_own
        self.num_around = self.num_before * features.shape[1]
        corner = np.array([*product(range(0, height, size), range(0, width, size), [0])])
        place = corner[:, None] + self.slots + np.array([margin, margin, 0])
        index_PS = place @ np.array([(width + 2 * margin) * channels, channels, 1])
        self.register_buffer("slot_index", torch.tensor(index_PS), persistent=False)
        self.register_buffer("features", features, persistent=False)

    def pad(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in a frame of V, "outside": int64 (B, L), channels last."""
        frame, outside = (self.margin, self.margin, self.margin, 0), len(self.features) - 1
        return F.pad(images.long(), frame, value=outside).permute(0, 2, 3, 1).flatten(1)

    def crop(self, padded: Tensor) -> Tensor:
        """Undo ``pad``."""
        channels, height, width = self.image_shape
        canvas = padded.view(len(padded), height + self.margin, -1, channels)
        return canvas[:, self.margin :, self.margin : self.margin + width].permute(0, 3, 1, 2)

    def embed(self, values: Tensor) -> Tensor:
        """Values (..., K) as features (..., K * E)."""
        return F.embedding(values, self.features).flatten(-2)


class Gate(nn.Module):
    """Logit that a patch is not blank, from the last state and the values around the patch."""

    def __init__(self, around: Neighbourhood, background: int, dim: int, width: int) -> None:
        super().__init__()
        self.background = background
        self.state = nn.Linear(dim, width)
        self.around = nn.Linear(around.num_around, width, bias=False)
        self.positions = nn.Embedding(around.num_patches, width)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.mlp = MLP(width, 2 * width)
        self.output = nn.Linear(width, 1)

    def look(self, features: Tensor, patch: Tensor) -> Tensor:
        """Sums (..., W) of the slots before patches (..., S * E) and of their numbers (...)."""
        return self.around(features) + self.positions(patch)

    def forward(self, state: Tensor, seen: Tensor) -> Tensor:
        """Logits (...), from ``self.state`` of the last state and the sums of ``look``."""
        x = state + seen
        x = x + self.mlp(rms_norm(x))
        return self.output(rms_norm(x)).squeeze(-1)


class Window(nn.Module):
    """Sums over the values drawn before a value, up to ``margin`` pixels away.

    There is one weight (E, W) per offset: of rows and columns, and the channels of both values.
    """

    index: Tensor
    seen: Tensor  # slots and offsets by each value in turn, beginning at ``first``
    first_I: Tensor

    def __init__(self, around: Neighbourhood, width: int) -> None:
        super().__init__()
        slots, num_before = around.slots, around.num_before
        own, order = slots[num_before:], np.arange(len(slots))
        near = abs(own[:, None, :2] - slots[:, :2]).max(-1) <= around.margin
        value, slot = np.nonzero(near & (order < order[num_before:, None]))
        offsets = np.hstack([slots[slot] - own[value] * (1, 1, 0), own[value, 2:]])
        unique, offset = np.unique(offsets, axis=0, return_inverse=True)
        self.weight = nn.Parameter(torch.empty(len(unique), around.features.shape[1], width))
        nn.init.normal_(self.weight, std=around.num_around**-0.5)
        index = np.full((len(slots), len(own)), len(unique))  # one too far: unseen
        index[slot, value] = offset = offset.ravel()
        num_features = around.features.shape[1]
        index_SEI = index[:, None] * num_features + np.arange(num_features)[:, None]
        self.register_buffer("index", torch.tensor(index_SEI), persistent=False)
        self.register_buffer("seen", torch.tensor(np.stack([slot, offset])), persistent=False)
        self.first = np.searchsorted(value, np.arange(len(own) + 1)).tolist()
        self.register_buffer("first_I", torch.tensor(self.first), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Sums (N, I * W) for whole patches, from the features (N, S * E) of all slots."""
        # Zeros for what a value must not see.
        rows = F.pad(self.weight.flatten(0, 1), (0, 0, 0, self.weight.shape[1]))
        weight_SEIW = F.embedding(self.index, rows)
        return features @ weight_SEIW.flatten(2).flatten(0, 1)

    def look(self, table: Tensor, values_NS: Tensor, start: int, stop: int) -> Tensor:
        """``forward`` for the values ``start`` to ``stop`` (N, ., W), by adding up rows of a table,
        features @ weight, with a row per offset and level: fast, but its gradient is not."""
        slot, offset = self.seen[:, self.first[start] : self.first[stop]]
        rows = offset * (len(table) // len(self.weight)) + values_NS.index_select(1, slot)
        first = self.first_I[start:stop] - self.first[start]
        first = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1] + first
        sums = F.embedding_bag(rows.flatten(), table, first.flatten(), mode="sum")
        return sums.unflatten(0, first.shape)


class ValueHead(nn.Module):
    """Distribution of each value of a patch, given the state and the values before it."""

    def __init__(
        self, around: Neighbourhood, num_levels: int, dim: int, width: int, depth: int, mlp_dim: int
    ) -> None:
        super().__init__()
        self.width = width
        self.state = nn.Linear(dim, around.num_own * width)
        self.window = Window(around, width)
        self.mlps = nn.ModuleList(MLP(width, mlp_dim) for _ in range(depth))
        self.output = nn.Linear(width, num_levels)
        nn.init.zeros_(self.output.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., V) of values, from the sums (..., W) of ``self.state`` and the window."""
        for mlp in self.mlps:
            x = x + mlp(rms_norm(x))
        return self.output(rms_norm(x))
