"""All of a patch model except its transformer: images as packed tokens, states as probabilities.

The images of a batch have different numbers of tokens. They are packed without padding: start
token, patches with ink, start token, patches with ink ... Without a background every patch counts
as one with ink. A patch's values are drawn in raster order, those of one pixel channel by channel
(R, G, B). The value head sees the earlier values through a window (neighbourhood.py).

Shapes: as in neighbourhood.py, and: N patches with ink, M = N + B tokens, D dim, O outputs per
value.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.networks import levels
from mnist_transformer.networks.neighbourhood import Neighbourhood, Window
from mnist_transformer.networks.transformer import MLP, rms_norm


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
        """Sums (..., W) for patches (...), with features (..., S * E) of the slots before them."""
        return self.around(features) + self.positions(patch)

    def forward(self, state: Tensor, seen: Tensor) -> Tensor:
        """Logits (...), from ``self.state`` of the last state and the sums of ``look``."""
        x = state + seen
        x = x + self.mlp(rms_norm(x))
        return self.output(rms_norm(x)).squeeze(-1)


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
        if logistics:  # evenly spread around the prediction
            means = torch.linspace(-1, 1, logistics)
            log_scales = torch.full_like(means, -3)
            self.output.bias.data = torch.cat([torch.zeros_like(means), means, log_scales])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., O) per value, from the sums (..., W) of ``self.state`` and the window.

        They are the levels' logits, or parameters of logistics.
        """
        for mlp in self.mlps:
            x = x + mlp(rms_norm(x))
        return self.output(rms_norm(x))

    def logits(self, output: Tensor, predicted: Tensor | None) -> Tensor:
        """Logits (..., V) of values, from ``forward`` and ``PatchDecoder.predict``."""
        if predicted is None:
            return output
        level = torch.arange(self.num_levels, device=output.device)
        return levels.log_prob(output[..., None, :], predicted[..., None], level, self.num_levels)

    def nats(self, output_NIO: Tensor, predicted_NI: Tensor | None, own_NI: Tensor) -> Tensor:
        """Nats (N * I,) of values, from ``forward`` and ``PatchDecoder.predict``."""
        output, values = output_NIO.flatten(0, 1), own_NI.flatten()
        if predicted_NI is None:
            return F.cross_entropy(output, values, reduction="none")
        return -levels.log_prob(output, predicted_NI.flatten(), values, self.num_levels)


class Packed(NamedTuple):
    """A batch of images as packed tokens, and all parts of the heads that need no state."""

    own_NI: Tensor  # int64, the values of the patches with ink
    predicted_NI: Tensor | None  # ``PatchDecoder.predict``
    inked_BP: Tensor  # bool
    gate_BPW: Tensor | None  # ``Gate.look``
    window: Tensor  # sums of ``Window`` (N, I * W)
    x_MD: Tensor  # tokens without their class
    token_N: Tensor  # the token of each patch with ink
    at_M: Tensor  # their positions; P is the start token's
    length_B: Tensor  # number of tokens of each image
    last: Tensor  # the last token up to the start token, and up to each patch (B, 1 + P)


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
        inked_BP, gate_BPW = torch.ones_like(values_BPS[..., 0], dtype=torch.bool), None
        inked_N = torch.arange(inked_BP.numel(), device=images.device)
        if self.gate is not None:
            inked_BP = (values_BPS[..., around.num_before :] != around.background).any(-1)
            inked_N = inked_BP.flatten().nonzero().squeeze(1)
            patch_P = torch.arange(around.num_patches, device=images.device)
            gate_BPW = self.gate.look(around.embed(values_BPS[..., : around.num_before]), patch_P)
        values_NS = values_BPS.flatten(0, 1)[inked_N]
        features, predicted_NI = around.embed(values_NS), self.predict(values_NS)
        x_ND, window = self.token(features[:, : around.num_around]), self.head.window(features)
        is_token = F.pad(inked_BP, (1, 0), value=True)
        last, length_B = is_token.flatten().cumsum(0).view_as(is_token) - 1, is_token.sum(1)
        token_N = last[:, 1:].flatten()[inked_N]
        at_M = token_N.new_full((len(images) + len(inked_N),), around.num_patches)
        at_M = at_M.index_copy(0, token_N, inked_N % around.num_patches)
        x_MD = x_ND.new_zeros(len(at_M), x_ND.shape[1]).index_copy(0, token_N, x_ND)
        values = values_NS[:, around.num_before :], predicted_NI, inked_BP
        return Packed(*values, gate_BPW, window, x_MD, token_N, at_M, length_B, last)

    def predict(self, values: Tensor) -> Tensor | None:
        """``Neighbourhood.predict``; None for a head of logits, which does not use it."""
        return self.around.predict(values) if self.head.logistics else None

    def logits(self, packed: Packed, state_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Float32: logits of ink (B, P), without a gate (B, 0); outputs of values (N, I, O)."""
        last = packed.last
        sums = self.head.state(state_MD[packed.token_N]) + packed.window
        value_NIO = self.head(sums.unflatten(-1, (-1, self.head.width)))
        ink_BP = value_NIO.new_zeros(len(last), 0)
        if self.gate is not None:
            ink_BP = self.gate(self.gate.state(state_MD)[last[:, :-1]], packed.gate_BPW)
        return ink_BP.float(), value_NIO.float()

    def nats(self, packed: Packed, ink_BP: Tensor, value_NIO: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W), from ``logits``; a gate's are spread over its patch."""
        inked_BP, own_NI = packed.inked_BP, packed.own_NI
        nats = self.head.nats(self.not_blank(value_NIO, own_NI), packed.predicted_NI, own_NI)
        nats_BPI = nats.new_zeros(*inked_BP.shape, own_NI.shape[1])
        nats_BPI = nats_BPI.masked_scatter(inked_BP[..., None], nats)
        if self.gate is not None:
            nats_BP = F.binary_cross_entropy_with_logits(ink_BP, inked_BP.float(), reduction="none")
            nats_BPI = nats_BPI + nats_BP[..., None] / self.around.num_own
        (channels, height, width), grid = self.around.image_shape, self.around.grid
        nats = nats_BPI.view(-1, *grid, height // grid[0], width // grid[1], channels).sum(-1)
        return nats.transpose(2, 3).reshape(-1, height, width)

    def not_blank(self, value_NIO: Tensor, own_NI: Tensor) -> Tensor:
        """Logits that end at a patch's last value, which must be ink if no value before it is."""
        if self.gate is not None:
            blank_N = (own_NI[:, :-1] == self.around.background).all(-1)
            value_NIO[blank_N, -1, self.around.background] = float("-inf")
        return value_NIO
