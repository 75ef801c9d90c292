"""All of a patch model but its transformer: images as packed tokens, states as probabilities.

The images of a batch have different numbers of tokens. They are packed without padding: start
token, patches with ink, start token, patches with ink ... Without a background every patch counts
as one with ink. A patch's values are drawn in raster order, those of one pixel channel by channel
(R, G, B). The value head sees those drawn before through a window whose weights all positions
share: a masked network as in MADE (arXiv 1502.03509).

Shapes: B batch, P patches, N patches with ink, M = N + B tokens, S slots of a neighbourhood, the
last I being the patch's own, I = C*s*s, E features of a value, V levels, W width, D dim.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.data.spec import DataSpec
from mnist_transformer.networks import levels
from mnist_transformer.networks.transformer import MLP, rms_norm


class Neighbourhood(nn.Module):
    """The slots around each patch: ``margin`` rows above, ``margin`` columns left, the patch."""

    features: Tensor
    slot_index: Tensor

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
        self.register_buffer("slot_index", torch.tensor(index_PS), persistent=False)
        features = levels.features(data.num_levels, data.background)
        self.register_buffer("features", features, persistent=False)
        self.num_around = self.num_before * features.shape[1]
        steps = np.array([(0, -1, 0), (-1, 0, 0), (-1, -1, 0)])[:, None, None]
        near = self.slots[self.num_before :, None] + steps == self.slots
        self.near = near.all(-1).argmax(-1)

    def pad(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in a frame of V, "outside": int64 (B, L), channels last."""
        frame = self.margin, self.margin, self.margin, 0
        return F.pad(images.long(), frame, value=self.num_levels).permute(0, 2, 3, 1).flatten(1)

    def crop(self, padded: Tensor) -> Tensor:
        """Undo ``pad``."""
        channels, height, width = self.image_shape
        canvas = padded.view(len(padded), height + self.margin, -1, channels)
        return canvas[:, self.margin :, self.margin : self.margin + width].permute(0, 3, 1, 2)

    def predict(self, values: Tensor) -> Tensor:
        """A plain prediction (..., I) of a patch's values, given all slots (..., S).

        A channel is predicted from its neighbours, and to err as the channel before it did.
        """
        level = torch.where(values == self.num_levels, self.num_levels // 2, values).float()
        plain = levels.edge_detector(*(level[..., slots] for slots in self.near))
        error = (level[..., self.num_before :] - plain).unflatten(-1, (-1, self.image_shape[0]))
        return plain + F.pad(error, (1, -1)).flatten(-2)

    def embed(self, values: Tensor) -> Tensor:
        """Values (..., K) as features (..., K * E)."""
        return F.embedding(values, self.features).flatten(-2)


class Gate(nn.Module):
    """Logit that a patch has ink, from the last state and the values around the patch."""

    def __init__(self, around: Neighbourhood, dim: int, width: int) -> None:
        super().__init__()
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

    index_SEI: Tensor
    seen: Tensor  # slots and offsets by each value in turn, beginning at ``first``
    first_I: Tensor

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
        index = np.full((len(slots), len(own)), len(unique))  # one too far: unseen
        index[slot, value] = offset = offset.ravel()
        index_SEI = index[:, None] * num_features + np.arange(num_features)[:, None]
        self.first = np.searchsorted(value, np.arange(len(own) + 1)).tolist()
        self.register_buffer("index_SEI", torch.tensor(index_SEI), persistent=False)
        self.register_buffer("seen", torch.tensor(np.stack([slot, offset])), persistent=False)
        self.register_buffer("first_I", torch.tensor(self.first), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Sums (N, I * W) for whole patches, from the features (N, S * E) of all slots."""
        # Zeros for what a value must not see.
        rows = F.pad(self.weight.flatten(0, 1), (0, 0, 0, self.weight.shape[1]))
        return features @ F.embedding(self.index_SEI, rows).flatten(2).flatten(0, 1)

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
        self, around: Neighbourhood, dim: int, logistics: int, width: int, depth: int, mlp_dim: int
    ) -> None:
        super().__init__()
        self.width, self.num_levels, self.logistics = width, around.num_levels, logistics
        self.state = nn.Linear(dim, around.num_own * width)
        self.window = Window(around, width)
        self.mlps = nn.ModuleList(MLP(width, mlp_dim) for _ in range(depth))
        self.output = nn.Linear(width, 3 * logistics or around.num_levels)
        nn.init.zeros_(self.output.weight)
        if logistics:
            levels.spread(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., O) per value, from the sums (..., W) of ``self.state`` and the window.

        They are the levels' logits, or parameters of logistics.
        """
        for mlp in self.mlps:
            x = x + mlp(rms_norm(x))
        return self.output(rms_norm(x))

    def logits(self, output: Tensor, predicted: Tensor) -> Tensor:
        """Logits (..., V) of values, from ``forward`` and ``Neighbourhood.predict``."""
        if not self.logistics:
            return output
        level = torch.arange(self.num_levels, device=output.device)
        return levels.log_prob(output[..., None, :], predicted[..., None], level, self.num_levels)

    def nats(self, output: Tensor, predicted: Tensor, values: Tensor) -> Tensor:
        """Nats (N,) of values (N,), from ``forward`` and ``Neighbourhood.predict``."""
        if not self.logistics:
            return F.cross_entropy(output, values, reduction="none")
        return -levels.log_prob(output, predicted, values, self.num_levels)


class Packed(NamedTuple):
    """A batch of images as packed tokens, and all of the heads that no state is needed for."""

    own_BPI: Tensor  # int64, the patches' values
    predicted_BPI: Tensor  # ``Neighbourhood.predict``
    inked_BP: Tensor  # bool
    gate_BPW: Tensor | None  # ``Gate.look``
    window: Tensor  # sums of ``Window`` (N, I * W)
    x_MD: Tensor  # tokens without their class
    at_M: Tensor  # their positions; P is the start token's
    length_B: Tensor  # number of tokens of each image
    last: Tensor  # the last token up to the start, and up to each patch (B, 1 + P)


class PatchDecoder(nn.Module):
    """See the module's docstring. Without a background it has no gate."""

    def __init__(self, around: Neighbourhood, dim: int, gate_width: int, *head_sizes: int) -> None:
        super().__init__()
        self.around = around
        self.gate = Gate(around, dim, gate_width) if around.has_blanks else None
        self.head = ValueHead(around, dim, *head_sizes)
        self.token = nn.Linear(around.num_around, dim)

    def lay_out(self, images: Tensor) -> Packed:
        """Images uint8 (B, C, H, W) as tokens."""
        around = self.around
        values_BPS = around.pad(images)[:, around.slot_index]
        own_BPI = values_BPS[..., around.num_before :]
        inked_BP, gate_BPW = torch.ones_like(own_BPI[..., 0], dtype=torch.bool), None
        if self.gate is not None:
            inked_BP = (own_BPI != around.background).any(-1)
            patch_P = torch.arange(around.num_patches, device=images.device)
            gate_BPW = self.gate.look(around.embed(values_BPS[..., : around.num_before]), patch_P)
        features = around.embed(values_BPS[inked_BP])
        x_ND, window = self.token(features[:, : around.num_around]), self.head.window(features)
        is_token = F.pad(inked_BP, (1, 0), value=True)
        at_M = (is_token.nonzero()[:, 1] - 1) % (around.num_patches + 1)
        x_MD = x_ND.new_zeros(len(at_M), x_ND.shape[1])
        x_MD[at_M < around.num_patches] = x_ND
        last, length_B = is_token.flatten().cumsum(0).view_as(is_token) - 1, is_token.sum(1)
        predicted_BPI = around.predict(values_BPS)
        return Packed(
            own_BPI, predicted_BPI, inked_BP, gate_BPW, window, x_MD, at_M, length_B, last
        )

    def logits(self, packed: Packed, state_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 of ink (B, P), without a gate (B, 0), and of values in ink (N, I, V)."""
        last = packed.last
        sums = self.head.state(state_MD[last[:, 1:][packed.inked_BP]]) + packed.window
        value_NIO = self.head(sums.unflatten(-1, (-1, self.head.width)))
        ink_BP = value_NIO.new_zeros(len(last), 0)
        if self.gate is not None:
            ink_BP = self.gate(self.gate.state(state_MD)[last[:, :-1]], packed.gate_BPW)
        return ink_BP.float(), value_NIO.float()

    def nats(self, packed: Packed, ink_BP: Tensor, value_NIO: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W), from ``logits``; a gate's are spread over its patch."""
        inked_BP, own_NI = packed.inked_BP, packed.own_BPI[packed.inked_BP]
        output = self.not_blank(value_NIO, own_NI).flatten(0, 1)
        predicted_NI = packed.predicted_BPI[inked_BP]
        nats = self.head.nats(output, predicted_NI.flatten(), own_NI.flatten())
        nats_BPI = nats.new_zeros(packed.own_BPI.shape).masked_scatter(inked_BP[..., None], nats)
        if self.gate is not None:
            nats_BP = F.binary_cross_entropy_with_logits(ink_BP, inked_BP.float(), reduction="none")
            nats_BPI = nats_BPI + nats_BP[..., None] / self.around.num_own
        (channels, height, width), grid = self.around.image_shape, self.around.grid
        nats = nats_BPI.view(-1, *grid, height // grid[0], width // grid[1], channels).sum(-1)
        return nats.transpose(2, 3).reshape(-1, height, width)

    def not_blank(self, value_NIO: Tensor, own_NI: Tensor) -> Tensor:
        """The logits up to a patch's last value, which has ink where no value before it has."""
        if self.gate is not None:
            blank_N = (own_NI[:, :-1] == self.around.background).all(-1)
            value_NIO[blank_N, -1, self.around.background] = float("-inf")
        return value_NIO
