"""Images as packed tokens, and a transformer's states as probabilities of images.

The images of a batch have different numbers of tokens. They are packed without padding: start
token, patches with ink, start token, patches with ink ... A patch has ink if it is not all
background; without a background every patch counts as one with ink.

Shapes: B batch, P patches, N patches with ink, M = N + B tokens, S slots of a neighbourhood, I
values of a patch, V levels, W width, D dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.patch.head import Gate, Neighbourhood, ValueHead


class Packed(NamedTuple):
    """A batch of images as packed tokens, and all of the heads that no state is needed for."""

    values_BPS: Tensor  # int64, those around each patch, then its own
    inked_BP: Tensor  # bool
    gate_BPW: Tensor | None  # ``Gate.look``
    window: Tensor  # sums of ``Window`` (N, I * W)
    x_MD: Tensor  # tokens without their class
    at_M: Tensor  # their positions; P is the start token's
    length_B: Tensor  # number of tokens of each image
    last: Tensor  # the last token up to the start, and up to each patch (B, 1 + P)


class PatchDecoder(nn.Module):
    """All of a patch model but its transformer and its condition."""

    def __init__(self, around: Neighbourhood, gate: Gate | None, head: ValueHead, dim: int) -> None:
        super().__init__()
        self.around, self.gate, self.head = around, gate, head
        self.token = nn.Linear(around.num_around, dim)

    def lay_out(self, images: Tensor) -> Packed:
        """Images uint8 (B, C, H, W) as tokens."""
        around, num_before = self.around, self.around.num_before
        values_BPS = around.pad(images)[:, around.slot_index]
        inked_BP, gate_BPW = torch.ones_like(values_BPS[..., 0], dtype=torch.bool), None
        if self.gate is not None:
            inked_BP = (values_BPS[..., num_before:] != self.gate.background).any(-1)
            patch_P = torch.arange(around.num_patches, device=images.device)
            gate_BPW = self.gate.look(around.embed(values_BPS[..., :num_before]), patch_P)
        features = around.embed(values_BPS[inked_BP])
        x_ND, window = self.token(features[:, : around.num_around]), self.head.window(features)
        is_token = F.pad(inked_BP, (1, 0), value=True)
        at_M = (is_token.nonzero()[:, 1] - 1) % (around.num_patches + 1)
        token_N = (at_M < around.num_patches).nonzero().squeeze(1)
        x_MD = x_ND.new_zeros(len(at_M), x_ND.shape[1]).index_copy(0, token_N, x_ND)
        last, length_B = is_token.flatten().cumsum(0).view_as(is_token) - 1, is_token.sum(1)
        return Packed(values_BPS, inked_BP, gate_BPW, window, x_MD, at_M, length_B, last)

    def logits(self, packed: Packed, state_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 (B, P) that a patch has ink, (B, 0) without a gate, and (N, I, V) of the
        values in ink."""
        last = packed.last
        sums = self.head.state(state_MD[last[:, 1:][packed.inked_BP]]) + packed.window
        value_NIV = self.head(sums.unflatten(-1, (-1, self.head.width)))
        ink_BP = value_NIV.new_zeros(len(last), 0)
        if self.gate is not None:
            ink_BP = self.gate(self.gate.state(state_MD)[last[:, :-1]], packed.gate_BPW)
        return ink_BP.float(), value_NIV.float()

    def nats(self, packed: Packed, ink_BP: Tensor, value_NIV: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W), from ``logits``; a gate's are spread over its patch."""
        inked_BP, own_BPI = packed.inked_BP, packed.values_BPS[..., self.around.num_before :]
        own_NI = own_BPI[inked_BP]
        logits = self.not_blank(value_NIV, own_NI).flatten(0, 1)
        nats = F.cross_entropy(logits, own_NI.flatten(), reduction="none")
        nats_BPI = nats.new_zeros(own_BPI.shape).masked_scatter(inked_BP[..., None], nats)
        if self.gate is not None:
            nats_BP = F.binary_cross_entropy_with_logits(ink_BP, inked_BP.float(), reduction="none")
            nats_BPI = nats_BPI + nats_BP[..., None] / own_BPI.shape[-1]
        (channels, height, width), grid = self.around.image_shape, self.around.grid
        nats = nats_BPI.view(-1, *grid, height // grid[0], width // grid[1], channels).sum(-1)
        return nats.transpose(2, 3).reshape(-1, height, width)

    def not_blank(self, value_NIV: Tensor, own_NI: Tensor) -> Tensor:
        """Logits of values up to the last one of patches with ink, given the patches.

        Where all values but the last are the background, the last one cannot be.
        """
        if self.gate is not None:
            blank_N = (own_NI[:, :-1] == self.gate.background).all(-1)
            value_NIV[blank_N, -1, self.gate.background] = float("-inf")
        return value_NIV
