"""How a patch model draws: all images at once, each from one patch with ink to its next.

``find_ink`` draws gates until a patch has ink; ``step`` reads that patch's token and draws its
values. One uniform number of the image's own decides each, so no image depends on its batch.

Shapes: R rows, one per image (more in keep.py), N of them that draw, G passes (with guidance
class and null class), P patches, I values of a patch, V levels, C gates drawn ahead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.models.patch.decoder import PatchDecoder
from mnist_transformer.networks.conditioning import guide
from mnist_transformer.networks.drawing import draw_categorical, draw_from_guesses
from mnist_transformer.networks.transformer import KVCache, Transformer
from mnist_transformer.options import Sampling

GATES = 512  # drawn at once in a search for ink
FEW = 2  # rows that are drawn faster from guesses than value by value

LogitsOf = Callable[..., Tensor]
"""Logits (N, ., V) of the values ``start`` to ``stop`` of patches, given the patches (N, I).

Arguments: the patches, start, stop, and if not all patches are given, which ones int64 (N,) are.
"""


class Rows(NamedTuple):
    """All that is known of unfinished drawings, beside the cache."""

    seen_RGT: Tensor  # which of the T tokens in the cache a row attends to
    canvas_R: Tensor  # see ``Neighbourhood.pad``
    class_RGD: Tensor  # added to every token
    state_RGD: Tensor  # of the last token
    next_R: Tensor  # the patch with ink that is drawn next, P if there is none


@dataclass(eq=False)
class Drawing:
    """The rows of one drawing, and the steps that change them."""

    decoder: PatchDecoder
    transformer: Transformer
    cache: KVCache  # of R * G rows; holds the text before the images
    text_RGT: Tensor  # bool, where there is some
    class_RGD: Tensor  # class vectors, and with guidance those of the null class
    draws_RPU: Tensor  # (R, P, 1 + I) in [0, 1), for the gate and the values of each patch
    how: Sampling

    def __post_init__(self) -> None:
        self.around, self.num_patches = self.decoder.around, self.decoder.around.num_patches
        (num_rows, self.num_passes, _), device = self.class_RGD.shape, self.class_RGD.device
        self.table = (self.around.features @ self.decoder.head.window.weight).flatten(0, 1)
        fill = 0 if self.decoder.gate is None else self.decoder.gate.background
        self.drawn = torch.full((num_rows, *self.around.image_shape), fill, device=device)
        self.place_R = torch.arange(num_rows, device=device)  # where in ``drawn`` a row belongs
        canvas_R, start_R = self.around.pad(self.drawn), torch.full_like(self.place_R, -1)
        self.rows = Rows(self.text_RGT, canvas_R, self.class_RGD, self.class_RGD, start_R)
        self.read(torch.zeros_like(self.class_RGD[:, 0]), start_R + 1 + self.num_patches)

    def steps(self) -> Iterator[Callable[[], Tensor]]:
        """Functions that make uint8 (B, C, H, W), the last one finished."""
        drawn_N = self.place_R
        while True:
            self.find_ink(drawn_N)
            yield self.canvas
            going_R = self.rows.next_R < self.num_patches
            if not going_R.any():
                return
            if going_R.sum() < 0.8 * len(going_R):  # not in every step, as it copies the cache
                self.canvas()  # for those that end here
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
        self.rows = Rows(*(x[index] for x in self.rows))
        pass_G = torch.arange(self.num_passes, device=index.device)
        self.cache.select((index[:, None] * self.num_passes + pass_G).flatten())

    def read(self, x_RD: Tensor, at_R: Tensor, reads_R: Tensor | None = None) -> None:
        """One more token of each row at these positions.

        ``reads_R``, bool: the rows that do; for the others it is a gap in the cache.
        """
        x_RGD = x_RD[:, None] + self.rows.class_RGD
        seen_RGT = F.pad(self.rows.seen_RGT, (0, 1), value=True)
        if reads_R is not None:
            seen_RGT[..., -1] = reads_R[:, None]
        mask = None if seen_RGT.all() else seen_RGT.flatten(0, 1)[:, None, None]
        at = at_R.repeat_interleave(self.num_passes)[:, None]
        state = self.transformer(x_RGD.flatten(0, 1)[:, None], self.cache, at=at, mask=mask)
        self.rows = self.rows._replace(seen_RGT=seen_RGT, state_RGD=state.view_as(x_RGD))

    def find_ink(self, rows_N: Tensor) -> None:
        """Move ``next`` of these rows to their next patch with ink.

        Several gates are drawn at once. Those behind the first patch with ink are drawn again when
        their turn comes, from the same uniform numbers.
        """
        gate = self.decoder.gate
        next_N = self.rows.next_R[rows_N] + 1
        search = torch.arange(len(rows_N), device=rows_N.device)
        while gate is not None and len(search):
            # A search costs its own while few rows take part, then what gates drawn in vain do.
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
        uniform = self.draws_RPU[index].flatten()
        binary = torch.stack([torch.zeros_like(logits_NC), logits_NC], -1).flatten(0, 1)
        return draw_categorical(binary, uniform, self.how).view_as(patch_NC) == 1

    def step(self, rows_N: Tensor, reads_R: Tensor | None = None) -> None:
        """Let rows read the token of their next patch, see ``read``, and draw it in rows N."""
        head, num_before = self.decoder.head, self.around.num_before
        patch_R = self.rows.next_R.clamp(max=self.num_patches - 1)
        values_RS = self.rows.canvas_R.gather(1, self.around.slot_index[patch_R])
        self.read(
            self.decoder.token(self.around.embed(values_RS[:, :num_before])), patch_R, reads_R
        )
        values_NS, patch_N = values_RS[rows_N], patch_R[rows_N]
        state_NGIW = head.state(self.rows.state_RGD[rows_N]).unflatten(-1, (-1, head.width))

        def logits_of(own_NI: Tensor, start: int, stop: int, of: Tensor | None = None) -> Tensor:
            if of is None:
                values_NS[:, num_before:] = own_NI
                values, state = values_NS, state_NGIW
            else:
                values, state = torch.cat([values_NS[of, :num_before], own_NI], 1), state_NGIW[of]
            seen_NIW = head.window.look(self.table, values, start, stop)
            logits_NGIV = head(state[:, :, start:stop] + seen_NIW[:, None])
            logits_NIV = guide(logits_NGIV.transpose(0, 1), self.how.guidance)[0]
            last = stop == own_NI.shape[1]
            return self.decoder.not_blank(logits_NIV, own_NI) if last else logits_NIV

        own_NI = self.draw_values(logits_of, rows_N, patch_N)
        self.rows.canvas_R[rows_N[:, None], self.around.slot_index[patch_N, num_before:]] = own_NI

    def draw_values(self, logits_of: LogitsOf, rows_N: Tensor, patch_N: Tensor) -> Tensor:
        """The values (N, I) of these patches, each drawn after those before it."""
        uniform_NI = self.draws_RPU[self.place_R[rows_N], patch_N, 1:]
        if len(rows_N) <= FEW:
            last = uniform_NI.shape[1]
            return draw_from_guesses(lambda x, of: logits_of(x, 0, last, of), uniform_NI, self.how)
        own_NI = torch.zeros_like(uniform_NI, dtype=torch.long)
        for i in range(own_NI.shape[1]):
            logits_NV = logits_of(own_NI, i, i + 1)[:, 0]
            own_NI[:, i] = draw_categorical(logits_NV, uniform_NI[:, i], self.how)
        return own_NI


def pick(canvas_R: Tensor, rows_N: Tensor, index: Tensor) -> Tensor:
    """``canvas[rows[n], index[n]]`` (N, ...), by flat numbers: four times as fast on a CPU."""
    flat = rows_N.view(-1, *[1] * (index.ndim - 1)) * canvas_R.shape[1] + index
    return canvas_R.flatten().index_select(0, flat.flatten()).view(index.shape)
