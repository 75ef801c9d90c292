"""How a patch model draws around kept pixels: particles of one image compete (particles.py).

Kept values decide: a patch with kept ink has ink, a patch that is kept all blank is blank, and a
kept value replaces a drawn one. Each multiplies a particle's weight by the probability that the
model gave it.

Shapes: as in draw.py, and: B images, K particles per image, R = B * K rows, T tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.models.patch.draw import Drawing, LogitsOf, pick
from mnist_transformer.networks.drawing import draw_categorical, log_prob
from mnist_transformer.networks.particles import Particles
from mnist_transformer.options import Keep

FREE = -1  # stands for a value that is to be drawn


@dataclass(eq=False)
class DrawingAround(Drawing):
    """A drawing by K particles per image."""

    keep: Keep  # per image
    particles: Particles

    def __post_init__(self) -> None:
        super().__post_init__()
        kept_B = self.around.pad(torch.where(self.keep.mask, self.keep.images.long(), FREE))
        self.kept_R = kept_B.repeat_interleave(self.particles.num_particles, 0)

    def steps(self) -> Iterator[Callable[[], Tensor]]:
        """Functions that make uint8 (B, C, H, W) of each image's heaviest particle; at last of one
        drawn by weight."""
        drawn_N = self.place_R
        while True:
            self.find_ink(drawn_N)
            parent_R = self.particles.resample()
            if parent_R is not None:  # each goes on from its parent, with its own randomness
                self.take(parent_R)
            # Particles wait for those of their image whose next patch comes first: the weights
            # that compete stand for the same kept values.
            next_BK = self.rows.next_R.view(-1, self.particles.num_particles)
            first_B1 = next_BK.amin(1, keepdim=True)
            draws_R = ((next_BK == first_B1) & (next_BK < self.num_patches)).flatten()
            if not draws_R.any():
                yield partial(self.canvas_of, self.particles.choose())
                return
            yield partial(self.canvas_of, self.particles.best())
            drawn_N = draws_R.nonzero().squeeze(1)
            self.step(drawn_N, draws_R)

    def canvas_of(self, rows_B: Tensor) -> Tensor:
        return self.canvas()[rows_B]

    def draw_gates(self, logits_NC: Tensor, rows_N: Tensor, patch_NC: Tensor) -> Tensor:
        assert self.decoder.gate is not None
        kept_NCI = self.kept(rows_N, patch_NC % self.num_patches)
        blank_NCI = kept_NCI == self.decoder.gate.background
        must_blank_NC, must_ink_NC = blank_NCI.all(-1), (~blank_NCI & (kept_NCI != FREE)).any(-1)
        drawn_NC = super().draw_gates(logits_NC, rows_N, patch_NC)
        inked_NC = (drawn_NC & ~must_blank_NC) | must_ink_NC
        # Gates behind the first patch with ink are drawn again, and weigh then.
        weighs_NC = (patch_NC < self.num_patches) & (inked_NC.cumsum(1) - inked_NC.int() == 0)
        weighs_NC &= must_ink_NC | must_blank_NC
        logits_NC = torch.where(must_ink_NC, logits_NC, -logits_NC) / self.how.temperature
        self.particles.weigh(rows_N, (F.logsigmoid(logits_NC) * weighs_NC).sum(1))
        return inked_NC

    def draw_values(self, logits_of: LogitsOf, rows_N: Tensor, patch_N: Tensor) -> Tensor:
        kept_NI = self.kept(rows_N, patch_N)
        own_NI = kept_NI.clamp(min=0)
        for i in range(own_NI.shape[1]):
            logits_NV, bound_N = logits_of(own_NI, i, i + 1)[:, 0], kept_NI[:, i] != FREE
            weight_N = log_prob(logits_NV, own_NI[:, i], self.how)
            self.particles.weigh(rows_N, weight_N.masked_fill(~bound_N, 0))
            uniform_N = self.draws_RPU[rows_N, patch_N, 1 + i]
            drawn_N = draw_categorical(logits_NV, uniform_N, self.how)
            own_NI[:, i] = torch.where(bound_N, own_NI[:, i], drawn_N)
        return own_NI

    def kept(self, rows_N: Tensor, patch_N: Tensor) -> Tensor:
        """The kept values (N, ..., I) of patches (N, ...)."""
        return pick(self.kept_R, rows_N, self.around.slot_index[patch_N, self.around.num_before :])
