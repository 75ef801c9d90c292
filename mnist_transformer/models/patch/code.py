"""How a patch model codes images: a drawing whose symbols a coder writes or reads (entropy.py).

Shapes: as in draw.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_transformer.models.patch.decoder import PatchDecoder
from mnist_transformer.models.patch.draw import Drawing, LogitsOf
from mnist_transformer.networks.entropy import Coder


@dataclass(eq=False)
class CodedDrawing(Drawing):
    """A drawing whose ``draws_RPU`` are the symbols to write; a decoder does not look at them."""

    coder: Coder

    def draw_gates(self, logits_NC: Tensor, rows_N: Tensor, patch_NC: Tensor) -> Tensor:
        inked_NC = torch.zeros_like(patch_NC, dtype=torch.bool)
        left = torch.arange(len(rows_N))  # those that have met no ink yet: others are not coded
        for ahead in range(patch_NC.shape[1]):
            left = left[patch_NC[left, ahead] < self.num_patches]
            if not len(left):
                break
            logit_N = logits_NC[left, ahead]
            binary = torch.stack([torch.zeros_like(logit_N), logit_N], -1)
            inked_N = self.code(binary, rows_N[left], patch_NC[left, ahead], 0) == 1
            inked_NC[left, ahead] = inked_N
            left = left[~inked_N]
        return inked_NC

    def draw_values(self, logits_of: LogitsOf, rows_N: Tensor, patch_N: Tensor) -> Tensor:
        own_NI = torch.zeros(len(rows_N), self.around.num_own, dtype=torch.long)
        for i in range(own_NI.shape[1]):
            logits_NV = logits_of(own_NI, i, i + 1)[:, 0]
            own_NI[:, i] = self.code(logits_NV, rows_N, patch_N, 1 + i)
        return own_NI

    def code(self, logits_NV: Tensor, rows_N: Tensor, patch_N: Tensor, symbol: int) -> Tensor:
        """This symbol of these patches: 0 is the gate, then come the values."""
        return self.coder.code(logits_NV, self.draws_RPU[self.place_R[rows_N], patch_N, symbol])


def symbols_of(decoder: PatchDecoder, images: Tensor) -> Tensor:
    """For each patch of images uint8 (B, C, H, W) its gate and its values: int64 (B, P, 1 + I)."""
    around = decoder.around
    own_BPI = around.pad(images)[:, around.slot_index[:, around.num_before :]]
    background = 0 if decoder.gate is None else decoder.gate.background
    inked_BP1 = (own_BPI != background).any(-1, keepdim=True)
    return torch.cat([inked_BP1.long(), own_BPI], -1)
