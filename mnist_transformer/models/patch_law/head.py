"""What a patch model sees of the drawn pixels, and what it makes of it: gate and pixel head.

Shapes: B batch, P patches, N patches with ink, S slots of a neighbourhood, I = s*s pixels of a
patch, E features of a pixel value, W width of the head or the gate, V grey levels, D dim.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.patch_law.level_law import DIRECTIONS
from mnist_transformer.networks.transformer import MLP, rms_norm

if TYPE_CHECKING:
    from mnist_transformer.models.patch_law.model import PatchConfig


class Neighbourhood(nn.Module):
    """What was drawn around each patch, as features: slots before the patch, then its own pixels.

    The slots are the ``margin`` rows above the patch, the ``margin`` columns left of it and, in
    raster order, the patch itself.
    """

    features: Tensor
    slot_index: Tensor

    def __init__(self, config: "PatchConfig") -> None:
        super().__init__()
        size, margin, edge = config.patch_size, config.margin, config.image_size
        above = [(y, x) for y in range(-margin, 0) for x in range(-margin, size + margin)]
        left = [(y, x) for y in range(size) for x in range(-margin, 0)]
        own = [(y, x) for y in range(size) for x in range(size)]
        self.slots = above + left + own  # (row, column) relative to the patch's first pixel
        self.num_before, self.num_own = len(above) + len(left), len(own)
        self.margin, self.outside = margin, config.num_levels
        table = _value_features(config.num_levels)
        self.num_features = table.shape[1]
        self.register_buffer("features", table, persistent=False)
        padded = edge + 2 * margin
        index = [
            [(py + y + margin) * padded + px + x + margin for y, x in self.slots]
            for py in range(0, edge, size)
            for px in range(0, edge, size)
        ]
        self.register_buffer("slot_index", torch.tensor(index), persistent=False)  # (P, S)

    def pad(self, images: Tensor) -> Tensor:
        """int64 (B, padded H * padded W): a frame of ``outside`` around the canvas."""
        padded = F.pad(images[:, 0].long(), (self.margin,) * 4, value=self.outside)
        return padded.flatten(1)

    def values(self, padded: Tensor) -> Tensor:
        """int64 (B, P, S): the pixels around every patch, then its own."""
        return padded[:, self.slot_index]

    def crop(self, padded: Tensor) -> Tensor:
        """``pad`` undone: (B, 1, H, W)."""
        edge = math.isqrt(padded.shape[1])
        inside = slice(self.margin, edge - self.margin)
        return padded.view(-1, 1, edge, edge)[:, :, inside, inside]

    def embed(self, values: Tensor) -> Tensor:
        """(..., S) pixel values to features (..., S * E)."""
        # In the dtype of the products that follow: in float32 it would be twice the memory.
        device = self.features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return F.embedding(values, self.features.to(dtype)).flatten(-2)


def _value_features(num_levels: int) -> Tensor:
    """Features (V + 1, E) of a grey level; row V, outside the canvas, is zero.

    Inside, ink, the level itself, and its sines and cosines at octaves up to the Nyquist
    frequency: neighbouring levels are alike, yet none is confused with another.
    """
    level = torch.arange(num_levels).double()
    columns = [torch.ones_like(level), (level > 0).double(), level / (num_levels - 1)]
    octave = 1
    while 2 * octave <= num_levels:
        angle = 2 * math.pi * octave * level / num_levels
        columns.append(angle.cos())
        if 2 * octave < num_levels:  # at the Nyquist frequency the sine is zero
            columns.append(angle.sin())
        octave *= 2
    return F.pad(torch.stack(columns, dim=1), (0, 0, 0, 1)).float()


class Corner(nn.Module):
    """Vectors for where a patch lies, seen from the top left corner of the ink drawn before it.

    MNIST's digits were scaled to a box of 20 pixels and the levels of a pixel depend on how far
    in the box it lies; on the canvas the box lies anywhere.
    """

    def __init__(self, config: "PatchConfig", dim: int) -> None:
        super().__init__()
        self.below = nn.Embedding(2 * config.image_size, dim)
        self.right = nn.Embedding(2 * config.image_size, dim)
        for table in (self.below, self.right):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, offset_N2: Tensor) -> Tensor:
        """(N, dim), from the offsets of ``corner_offsets``."""
        below_N, right_N = offset_N2.unbind(-1)
        return self.below(below_N) + self.right(right_N)


def first_ink(own_I: Tensor, start_2: Tensor, edge: int) -> Tensor:
    """First row and first column of the canvas with ink of patches: int64 (..., 2), edge if none.

    Args:
        own_I: the patches' pixels (..., I).
        start_2: row and column of each patch's first pixel (..., 2).
    """
    size = math.isqrt(own_I.shape[-1])
    ink = own_I.unflatten(-1, (size, size)) > 0
    found = []
    for start, lines in zip(start_2.unbind(-1), (ink.any(-1), ink.any(-2)), strict=True):
        found.append(torch.where(lines.any(-1), start + lines.int().argmax(-1), edge))
    return torch.stack(found, -1)


def corner_offsets(start_N2: Tensor, corner_N2: Tensor, edge: int) -> Tensor:
    """Rows and columns from the corner to a patch's first pixel, plus edge; 0 without a corner."""
    return torch.where(corner_N2 < edge, start_N2 - corner_N2 + edge, 0)


class PixelHead(nn.Module):
    """Distribution of each pixel of a patch, given the state and the pixels before it."""

    offset_index: Tensor

    def __init__(self, config: "PatchConfig", neighbourhood: Neighbourhood) -> None:
        super().__init__()
        self.num_pixels, self.width = config.patch_size**2, config.head_width
        self.num_before, self.num_features = neighbourhood.num_before, neighbourhood.num_features
        self.state = nn.Linear(config.dim, self.num_pixels * self.width)
        self.corner = Corner(config, self.num_pixels * self.width) if config.corner else None
        # One weight an offset from the pixel being drawn, and a last row of zeros for what it
        # must not see: itself, later pixels of the patch, and what is outside its window.
        reach = 2 * config.margin + 1
        self.window = nn.Parameter(torch.empty(reach * reach, self.num_features, self.width))
        fan_in = neighbourhood.num_before * self.num_features
        nn.init.normal_(self.window, std=fan_in**-0.5)
        own = neighbourhood.slots[self.num_before :]
        index = [
            [self._offset(slot, j, i, config.margin, own) for i in range(self.num_pixels)]
            for j, slot in enumerate(neighbourhood.slots)
        ]
        self.register_buffer("offset_index", torch.tensor(index), persistent=False)  # (S, I)
        self.mlps = nn.ModuleList(
            MLP(self.width, config.head_mlp_dim) for _ in range(config.head_depth)
        )
        self.copy = nn.Linear(self.width, 1)
        self.trust = nn.Linear(self.width, 1) if config.law else None
        self.direction = nn.Linear(self.width, DIRECTIONS) if config.law else None
        self.output = nn.Linear(self.width, config.num_levels)
        nn.init.zeros_(self.output.weight)
        for gate in (self.copy, self.trust, self.direction):
            if gate is not None:
                nn.init.zeros_(gate.weight)
                nn.init.zeros_(gate.bias)

    def _offset(
        self, slot: tuple[int, int], j: int, i: int, margin: int, own: list[tuple[int, int]]
    ) -> int:
        row, column = slot[0] - own[i][0] + margin, slot[1] - own[i][1] + margin
        reach = 2 * margin + 1
        seen = j - self.num_before < i and 0 <= row < reach and 0 <= column < reach
        return row * reach + column if seen else reach * reach

    def contributions(self, features: Tensor) -> Tensor:
        """What each grey level adds to a pixel at each offset: rows (offsets * levels, W).

        In drawing a sum of its rows does what a product with the window does in training, in
        a tenth of the time: most of that product's weights are zeros.

        Args:
            features: (V + 1, E) of the levels, see ``Neighbourhood``.
        """
        return (features @ F.pad(self.window, (0, 0, 0, 0, 0, 1))).flatten(0, 1)

    def window_weight(self) -> Tensor:
        """The shared window, laid out for whole patches: (S, E, I, W)."""
        rows = F.pad(self.window.flatten(1), (0, 0, 0, 1))
        weight = F.embedding(self.offset_index, rows)  # (S, I, E * W)
        return weight.unflatten(-1, (self.num_features, self.width)).transpose(1, 2)

    def forward(
        self,
        state_ND: Tensor,
        around_NF: Tensor,
        palette_NV: Tensor,
        offset_N2: Tensor,
        law_NIDV: Tensor | None,
    ) -> Tensor:
        """Logits (N, I, V) of all pixels at once; ``around`` holds the S * E features."""
        weight = self.window_weight().flatten(2).flatten(0, 1)
        x_NX = self.told(state_ND, offset_N2) + around_NF @ weight
        x_NIW = x_NX.unflatten(-1, (-1, self.width))
        return self.logits(x_NIW, palette_NV[:, None], law_NIDV, self.readout())

    def told(self, state: Tensor, offset_N2: Tensor) -> Tensor:
        """What all pixels are told of the patch, from the states (..., N, D): (..., N, I * W)."""
        x = self.state(state)
        return x if self.corner is None else x + self.corner(offset_N2)

    def readout(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of all that is read off a pixel, as one product: V levels, copy ..."""
        gates = [gate for gate in (self.copy, self.trust, self.direction) if gate is not None]
        linears = [self.output, *gates]
        return torch.cat([x.weight for x in linears]), torch.cat([x.bias for x in linears])

    def logits(
        self, x: Tensor, palette: Tensor, law: Tensor | None, readout: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Logits (..., V) from the summed inputs (..., W), the palette and the law (..., V).

        Args:
            readout: of ``readout()``, which drawing asks for once.
        """
        for mlp in self.mlps:
            x = x + mlp(rms_norm(x))
        read = F.linear(rms_norm(x), *readout)
        if law is None:
            level, copy = read.split([palette.shape[-1], 1], -1)
            return torch.addcmul(level, copy, palette)
        level, copy, trust, direction = read.split([palette.shape[-1], 1, 1, DIRECTIONS], -1)
        logits = torch.addcmul(level, copy, palette)
        share = direction.float().softmax(-1)
        law = (share[..., None, :] @ law).squeeze(-2).log()
        return torch.addcmul(logits, trust, law)


class Gate(nn.Module):
    """Logit that a patch has ink, from the last state and the pixels drawn near the patch."""

    def __init__(self, config: "PatchConfig", num_patches: int, num_features: int) -> None:
        super().__init__()
        self.state = nn.Linear(config.dim, config.gate_width)
        self.around = nn.Linear(num_features, config.gate_width, bias=False)
        self.positions = nn.Embedding(num_patches, config.gate_width)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.mlp = MLP(config.gate_width, 2 * config.gate_width)
        self.output = nn.Linear(config.gate_width, 1)

    def forward(self, state: Tensor, around: Tensor, patch: Tensor) -> Tensor:
        """Logits (...); states are projected (..., W), features (..., F), patches numbers (...)."""
        x = state + self.around(around) + self.positions(patch)
        x = x + self.mlp(rms_norm(x))
        return self.output(rms_norm(x)).squeeze(-1)
