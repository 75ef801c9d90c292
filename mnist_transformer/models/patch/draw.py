"""How a patch model draws: all images at once, each from one patch with ink to its next.

``find_ink`` draws gates until a patch has ink; ``step`` reads that patch's token and draws its
values. One uniform number of the image's own decides each, so no image depends on its batch.

Around kept pixels K particles draw each image (particles.py): a patch with kept ink has ink, one
that is kept all blank is blank, and a kept value replaces a drawn one.

Shapes: B images, R rows (B, or B * K), N of them that draw, G passes (with guidance class and
null class), P patches, I values of a patch, V levels, C gates drawn ahead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.models.patch.decoder import PatchDecoder
from mnist_transformer.networks.conditioning import guide
from mnist_transformer.networks.drawing import draw_categorical, draw_from_guesses, log_prob
from mnist_transformer.networks.particles import Particles
from mnist_transformer.networks.transformer import KVCache, Transformer
from mnist_transformer.options import Keep, Sampling

GATES = 512  # drawn at once in a search for ink
FEW = 2  # rows that are drawn faster from guesses than value by value
FREE = -1  # stands for a value that is not kept
LogitsOf = Callable[[Tensor, int, int], Tensor]  # patches (N, I), start, stop -> logits (N, ., V)


class Rows(NamedTuple):
    """All that is known of unfinished drawings, beside the cache."""

    canvas_R: Tensor  # see ``Neighbourhood.pad``
    class_RGD: Tensor  # added to every token
    state_RGD: Tensor  # of the last token
    next_R: Tensor  # the patch with ink that is drawn next, P if there is none

    def take(self, index: Tensor) -> "Rows":
        return Rows(*(x[index] for x in self))


@dataclass(eq=False)
class Drawing:
    """The rows of one drawing, and the steps that change them."""

    decoder: PatchDecoder
    transformer: Transformer
    class_RGD: Tensor  # class vectors, and with guidance those of the null class
    uniform_RPU: Tensor  # (R, P, 1 + I) in [0, 1), for the gate and the values of each patch
    how: Sampling

    def __post_init__(self) -> None:
        self.around, self.num_patches = self.decoder.around, self.decoder.around.num_patches
        (num_rows, self.num_passes, _), device = self.class_RGD.shape, self.class_RGD.device
        self.table = (self.around.features @ self.decoder.head.window.weight).flatten(0, 1)
        self.cache = KVCache(self.transformer, num_rows * self.num_passes, device=device)
        fill = 0 if self.decoder.gate is None else self.decoder.gate.background
        self.drawn = torch.full((num_rows, *self.around.image_shape), fill, device=device)
        self.place_R = torch.arange(num_rows, device=device)  # where in ``drawn`` a row belongs
        canvas_R, start_R = self.around.pad(self.drawn), torch.full_like(self.place_R, -1)
        self.rows = Rows(canvas_R, self.class_RGD, self.class_RGD, start_R)
        self.read(torch.zeros_like(self.class_RGD[:, 0]), start_R + 1 + self.num_patches)

    def steps(self) -> Iterator[Tensor]:
        """uint8 (B, C, H, W), the last one finished."""
        drawn_N = self.place_R
        while True:
            self.find_ink(drawn_N)
            yield self.canvas()
            going_R = self.rows.next_R < self.num_patches
            if not going_R.any():
                return
            if going_R.sum() < 0.8 * len(going_R):  # not in every step, as it copies the cache
                self.place_R = self.place_R[going_R]
                self.take(going_R.nonzero().squeeze(1))
            drawn_N = (self.rows.next_R < self.num_patches).nonzero().squeeze(1)
            self.step(drawn_N)

    def canvas(self) -> Tensor:
        """All images as they are now, uint8 (R, C, H, W)."""
        self.drawn[self.place_R] = self.around.crop(self.rows.canvas_R)
        return self.drawn.to(torch.uint8)

    def take(self, index: Tensor) -> None:
        """Go on with these rows."""
        self.rows = self.rows.take(index)
        pass_G = torch.arange(self.num_passes, device=index.device)
        self.cache.select((index[:, None] * self.num_passes + pass_G).flatten())

    def read(self, x_RD: Tensor, at_R: Tensor, mask: Tensor | None = None) -> None:
        """One more token of each row at these positions; mask as in ``Transformer``."""
        x_RGD = x_RD[:, None] + self.rows.class_RGD
        at = at_R.repeat_interleave(self.num_passes)[:, None]
        state = self.transformer(x_RGD.flatten(0, 1)[:, None], self.cache, at=at, mask=mask)
        self.rows = self.rows._replace(state_RGD=state.view_as(x_RGD))

    def find_ink(self, rows_N: Tensor) -> None:
        """Move ``next`` of these rows to their next patch with ink.

        Gates are drawn ahead; those behind the first patch with ink are drawn again in their turn.
        """
        gate = self.decoder.gate
        next_N = self.rows.next_R[rows_N] + 1
        search = torch.arange(len(rows_N), device=rows_N.device)
        while gate is not None and len(search):
            num_ahead = max(2, min(self.around.grid[1], GATES // len(search)))
            patch_NC = next_N[search, None] + torch.arange(num_ahead, device=rows_N.device)
            within = patch_NC % self.num_patches
            slots = self.around.slot_index[within, : self.around.num_before]
            around = self.around.embed(pick(self.rows.canvas_R, rows_N[search], slots))
            state_NGW = gate.state(self.rows.state_RGD[rows_N[search]])
            logits_NGC = gate(state_NGW[:, :, None], gate.look(around, within)[:, None])
            logits_NC = guide(logits_NGC.transpose(0, 1), self.how.guidance)[0]
            inked_NC = self.draw_gates(logits_NC, rows_N[search], patch_NC)
            inked_NC |= patch_NC >= self.num_patches  # the search ends behind the last patch
            found_N = inked_NC.any(1)
            step_N = torch.where(found_N, inked_NC.int().argmax(1), num_ahead)
            next_N[search] = (next_N[search] + step_N).clamp(max=self.num_patches)
            search = search[~found_N]
        self.rows.next_R[rows_N] = next_N

    def draw_gates(self, logits_NC: Tensor, rows_N: Tensor, patch_NC: Tensor) -> Tensor:
        """Whether these patches have ink, bool (N, C)."""
        index = self.place_R[rows_N, None], patch_NC % self.num_patches, 0
        uniform = self.uniform_RPU[index].flatten()
        binary = torch.stack([torch.zeros_like(logits_NC), logits_NC], -1).flatten(0, 1)
        return draw_categorical(binary, uniform, self.how).view_as(patch_NC) == 1

    def step(self, rows_N: Tensor, mask: Tensor | None = None) -> None:
        """Let all rows read the token of their next patch, and draw it in these rows."""
        head, num_before = self.decoder.head, self.around.num_before
        patch_R = self.rows.next_R.clamp(max=self.num_patches - 1)
        values_RS = self.rows.canvas_R.gather(1, self.around.slot_index[patch_R])
        self.read(self.decoder.token(self.around.embed(values_RS[:, :num_before])), patch_R, mask)
        values_NS, patch_N = values_RS[rows_N], patch_R[rows_N]
        state_NGIW = head.state(self.rows.state_RGD[rows_N]).unflatten(-1, (-1, head.width))

        def logits_of(own_NI: Tensor, start: int, stop: int) -> Tensor:
            values_NS[:, num_before:] = own_NI
            seen_NIW = head.window.look(self.table, values_NS, start, stop)
            logits_NGIV = head(state_NGIW[:, :, start:stop] + seen_NIW[:, None])
            logits_NIV = guide(logits_NGIV.transpose(0, 1), self.how.guidance)[0]
            last = stop == own_NI.shape[1]
            return self.decoder.not_blank(logits_NIV, own_NI) if last else logits_NIV

        own_NI = self.draw_values(logits_of, rows_N, patch_N)
        self.rows.canvas_R[rows_N[:, None], self.around.slot_index[patch_N, num_before:]] = own_NI

    def draw_values(self, logits_of: LogitsOf, rows_N: Tensor, patch_N: Tensor) -> Tensor:
        """The values (N, I) of these patches, each drawn after those before it."""
        uniform_NI = self.uniform_RPU[self.place_R[rows_N], patch_N, 1:]
        if len(rows_N) <= FEW:
            return draw_from_guesses(lambda x: logits_of(x, 0, x.shape[1]), uniform_NI, self.how)
        own_NI = torch.zeros_like(uniform_NI, dtype=torch.long)
        for i in range(own_NI.shape[1]):
            logits_NV = logits_of(own_NI, i, i + 1)[:, 0]
            own_NI[:, i] = draw_categorical(logits_NV, uniform_NI[:, i], self.how)
        return own_NI


def pick(canvas_R: Tensor, rows_N: Tensor, index: Tensor) -> Tensor:
    """``canvas[rows[n], index[n]]`` (N, ...), by flat numbers: four times as fast on a CPU."""
    flat = rows_N.view(-1, *[1] * (index.ndim - 1)) * canvas_R.shape[1] + index
    return canvas_R.flatten().index_select(0, flat.flatten()).view(index.shape)


@dataclass(eq=False)
class DrawingAround(Drawing):
    """A drawing by K particles per image."""

    keep: Keep  # per image
    particles: Particles

    def __post_init__(self) -> None:
        super().__post_init__()
        kept_B = self.around.pad(torch.where(self.keep.mask, self.keep.images.long(), FREE))
        self.kept_R = kept_B.repeat_interleave(self.particles.num_particles, 0)

    def steps(self) -> Iterator[Tensor]:
        """uint8 (B, C, H, W) of each image's heaviest particle; at last of one drawn by weight."""
        drawn_N = self.place_R
        seen_RT = torch.ones_like(self.place_R, dtype=torch.bool)[:, None]  # the start token
        while True:
            self.find_ink(drawn_N)
            parent_R = self.particles.resample()
            if parent_R is not None:  # each goes on from its parent, with its own randomness
                self.take(parent_R)
                seen_RT = seen_RT[parent_R]
            # Particles wait for those of their image whose next patch comes first: the weights
            # that compete stand for the same kept values.
            next_BK = self.rows.next_R.view(-1, self.particles.num_particles)
            first_B1 = next_BK.amin(1, keepdim=True)
            draws_R = ((next_BK == first_B1) & (next_BK < self.num_patches)).flatten()
            if not draws_R.any():
                yield self.canvas()[self.particles.choose()]
                return
            yield self.canvas()[self.particles.best()]
            drawn_N = draws_R.nonzero().squeeze(1)
            # A row that waits leaves a gap in the cache.
            seen_RT = torch.cat([seen_RT, draws_R[:, None]], 1)
            self.step(drawn_N, seen_RT.repeat_interleave(self.num_passes, 0)[:, None, None])

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
            uniform_N = self.uniform_RPU[rows_N, patch_N, 1 + i]
            drawn_N = draw_categorical(logits_NV, uniform_N, self.how)
            own_NI[:, i] = torch.where(bound_N, own_NI[:, i], drawn_N)
        return own_NI

    def kept(self, rows_N: Tensor, patch_N: Tensor) -> Tensor:
        """The kept values (N, ..., I) of patches (N, ...)."""
        return pick(self.kept_R, rows_N, self.around.slot_index[patch_N, self.around.num_before :])
