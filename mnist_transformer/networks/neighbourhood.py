"""The values around a patch of an image: where they are, and masked sums over them.

The window's weights are shared by all positions, and each value sees only those drawn before
it: a masked network as in MADE (arXiv 1502.03509).

Shapes: B batch, L values of a padded image, P patches, N some patches, S slots of a neighbourhood,
the last I being the patch's own, I = C*s*s, E features of a value, V levels, W width.
"""

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.data.spec import DataSpec
from mnist_transformer.networks import levels


class Neighbourhood(nn.Module):
    """The slots of each patch: ``margin`` rows above, ``margin`` columns to the left, the patch."""

    def __init__(self, data: DataSpec, size: int, margin: int) -> None:
        super().__init__()
        channels, height, width = self.image_shape = data.shape
        self.num_levels, self.margin = data.num_levels, margin
        self.has_blanks, self.background = data.background is not None, data.background or 0
        self.grid = height // size, width // size
        self.num_patches, self.num_own = self.grid[0] * self.grid[1], channels * size * size
        above = product(range(-margin, 0), range(-margin, size + margin), range(channels))
        left = product(range(size), range(-margin, 0), range(channels))
        own = product(range(size), range(size), range(channels))
        self.slots = np.array([*above, *left, *own])  # row, column and channel from the corner
        self.num_before = len(self.slots) - self.num_own
        corner = np.array([*product(range(0, height, size), range(0, width, size), [0])])
        place = corner[:, None] + self.slots + np.array([margin, margin, 0])
        index_PS = place @ np.array([(width + 2 * margin) * channels, channels, 1])
        self.slot_index = nn.Buffer(torch.tensor(index_PS), persistent=False)
        features = levels.features(data.num_levels, data.background)
        self.features = nn.Buffer(features, persistent=False)
        self.num_around = self.num_before * features.shape[1]
        steps = np.array([(0, -1, 0), (-1, 0, 0), (-1, -1, 0)])[:, None, None]
        near = self.slots[self.num_before :, None] + steps == self.slots
        self.near = near.all(-1).argmax(-1)

    def pad(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), padded with V for "outside": int64 (B, L), channels last."""
        frame = self.margin, self.margin, self.margin, 0
        return F.pad(images.long(), frame, value=self.num_levels).permute(0, 2, 3, 1).flatten(1)

    def crop(self, padded: Tensor) -> Tensor:
        """Undo ``pad``."""
        channels, height, width = self.image_shape
        canvas = padded.view(len(padded), height + self.margin, -1, channels)
        return canvas[:, self.margin :, self.margin : self.margin + width].permute(0, 3, 1, 2)

    def predict(self, values: Tensor) -> Tensor:
        """A plain prediction (..., I) of a patch's values, given all slots (..., S).

        A value is predicted from its neighbours, plus the error of the channel before it.
        """
        level = torch.where(values == self.num_levels, self.num_levels // 2, values).float()
        left, above, corner = (level[..., slots] for slots in self.near)
        # The median edge detector of LOCO-I and JPEG-LS: the plane through the neighbours, clamped.
        plain = (left + above - corner).clamp(left.minimum(above), left.maximum(above))
        error = (level[..., self.num_before :] - plain).unflatten(-1, (-1, self.image_shape[0]))
        return plain + F.pad(error, (1, -1)).flatten(-2)

    def embed(self, values: Tensor) -> Tensor:
        """Values (..., K) as features (..., K * E)."""
        return F.embedding(values, self.features).flatten(-2)


class Window(nn.Module):
    """For each value, a weighted sum over those drawn before it, up to ``margin`` pixels away.

    There is one weight (E, W) per offset in rows and columns and pair of channels.
    """

    def __init__(self, around: Neighbourhood, width: int) -> None:
        super().__init__()
        slots, own = around.slots, around.slots[around.num_before :]
        near = abs(own[:, None, :2] - slots[:, :2]).max(-1) <= around.margin
        earlier = np.tri(len(own), len(slots), around.num_before - 1, dtype=bool)
        value, slot = np.nonzero(near & earlier)
        offsets = np.hstack([slots[slot] - own[value] * (1, 1, 0), own[value, 2:]])
        unique, offset = np.unique(offsets, axis=0, return_inverse=True)
        num_features = around.features.shape[1]
        self.weight = nn.Parameter(torch.empty(len(unique), num_features, width))
        nn.init.normal_(self.weight, std=around.num_around**-0.5)
        index = np.full((len(slots), len(own)), len(unique))  # past the end: unseen
        index[slot, value] = offset = offset.ravel()
        index_SEI = index[:, None] * num_features + np.arange(num_features)[:, None]
        self.first = np.searchsorted(value, np.arange(len(own) + 1)).tolist()
        self.index_SEI = nn.Buffer(torch.tensor(index_SEI), persistent=False)
        # Slots and offsets of each value in turn, starting at ``first``.
        self.seen = nn.Buffer(torch.tensor(np.stack([slot, offset])), persistent=False)
        self.first_I = nn.Buffer(torch.tensor(self.first), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Sums (N, I * W) for whole patches, from the features (N, S * E) of all slots."""
        return features @ self.matrix()

    def matrix(self) -> Tensor:
        """Weights (S * E, I * W) from each slot to each value; 0 for what a value must not see."""
        rows = F.pad(self.weight.flatten(0, 1), (0, 0, 0, self.weight.shape[1]))
        return F.embedding(self.index_SEI, rows).flatten(2).flatten(0, 1)

    def look(self, table: Tensor, values_NS: Tensor, start: int, stop: int) -> Tensor:
        """``forward`` for the values ``start`` to ``stop`` (N, ., W), by adding up rows of a table,
        features @ weight, with one row per offset and level: fast, but with a slow gradient."""
        slot, offset = self.seen[:, self.first[start] : self.first[stop]]
        rows = offset * (len(table) // len(self.weight)) + values_NS.index_select(1, slot)
        first = self.first_I[start:stop] - self.first[start]
        first = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1] + first
        sums = F.embedding_bag(rows.flatten(), table, first.flatten(), mode="sum")
        return sums.unflatten(0, first.shape)
