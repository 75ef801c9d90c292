"""How a patch model draws: all images at once, each from one patch with ink to its next.

Shapes: B images, K particles an image, R = B * K rows, A rows in the cache, X the cache's batch
(2A with guidance: class, then null class; else A), N rows that draw in this step, G = X / A,
T tokens of the text before an image, P patches, S slots of a neighbourhood, I pixels of a patch,
C gates drawn ahead, V grey levels.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.models.patch_law.head import first_ink
from mnist_transformer.networks.conditioning import guide
from mnist_transformer.networks.drawing import Noise, draw_categorical, log_prob
from mnist_transformer.networks.particles import Particles
from mnist_transformer.networks.transformer import KVCache
from mnist_transformer.options import Keep, Sampling

if TYPE_CHECKING:
    from mnist_transformer.models.patch_law.model import Patch

GATES = 512  # drawn at once in a search for ink
FEW = 2  # rows that are drawn sooner from guesses than pixel by pixel
FREE = -1  # where a kept value would stand: this pixel is to be drawn


class PatchSampler:
    """One drawing: the state of every row, and the steps that change it."""

    def __init__(
        self, model: "Patch", cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> None:
        self.model, self.how, self.around = model, how, model.around
        self.num_patches = model.num_patches
        num_particles = how.num_particles if keep is not None else 1
        self.uniform_RPU = noise.uniform(
            num_particles, self.num_patches, 1 + self.around.num_own
        ).flatten(0, 1)
        self.particles = Particles(noise, num_particles, self.num_patches + 1)
        num_rows = len(self.uniform_RPU)
        blank = torch.zeros(num_rows, *model.image_shape, dtype=torch.uint8, device=model.device)
        self.padded_R = self.around.pad(blank)
        self.kept_R = torch.full_like(self.padded_R, FREE)
        if keep is not None:
            kept = self.around.pad(torch.where(keep.mask, keep.images.long(), FREE))
            self.kept_R = kept.repeat_interleave(num_particles, 0)
        self.counts_RV = torch.zeros(num_rows, model.config.num_levels, device=model.device)
        self.previous_RI = self.padded_R.new_full(
            (num_rows, self.around.num_own), self.around.outside
        )
        # Of how the digit was scaled: its log-probabilities, see ``LevelLaw``.
        self.law_RH = self.counts_RV[:, :0]
        if model.law is not None:
            self.law_RH = model.law.log_prior_H.expand(num_rows, -1).clone()
        edge = model.config.image_size
        self.corner_R2 = self.padded_R.new_full((num_rows, 2), edge)  # see ``first_ink``
        self.next_R = self.padded_R.new_full((num_rows,), -1)  # the next patch with ink, P if none

        cond_X = model.with_null(cond.repeat_interleave(num_particles, 0), how.guidance)
        self.class_XD = model.class_vectors(cond_X)
        self.num_passes = len(self.class_XD) // num_rows
        self.rows_A = torch.arange(num_rows, device=model.device)
        num_tokens = cond_X[0].numel() + self.num_patches + 1  # as many as it can be
        self.cache = KVCache(
            model.transformer, len(cond_X), num_tokens=num_tokens, device=model.device
        )
        self.text_XT = model.read_text(cond_X, self.cache)
        # A row that waits leaves a place in the cache that it must not see.
        self.seen_RL = blank.new_zeros(num_rows, self.num_patches + 1, dtype=torch.bool)
        self.contributions = model.head.contributions(self.around.features)
        self.readout = model.head.readout()
        # Where the rows of each offset begin, for what a pixel sees before its patch and in it.
        first_IS = (model.head.offset_index * len(self.around.features)).T
        self.before_IS, self.own_II = first_IS.split([self.around.num_before, first_IS.shape[0]], 1)

    def steps(self) -> Iterator[Tensor]:
        """uint8 (B, 1, H, W), the last one finished."""
        start_A = torch.full_like(self.rows_A, self.num_patches)
        drawn_A = torch.ones_like(self.rows_A, dtype=torch.bool)
        state_GAD = self._read(torch.zeros_like(self.class_XD), start_A, drawn_A)
        while True:
            self._find_ink(self.rows_A[drawn_A], state_GAD[:, drawn_A])
            self._resample()
            # Rows of one image wait for those whose next patch comes first, so that their
            # weights stand for the same kept pixels.
            first_B = self.next_R.view(-1, self.particles.num_particles).amin(1)
            first_R = first_B.repeat_interleave(self.particles.num_particles)
            if (first_B == self.num_patches).all():
                break
            yield self._canvas(self.particles.best())
            self._forget(first_R[self.rows_A] < self.num_patches)
            next_A = self.next_R[self.rows_A]
            drawn_A = (next_A == first_R[self.rows_A]) & (next_A < self.num_patches)
            patch_A = next_A.clamp(max=self.num_patches - 1)
            slots_AS = self.around.slot_index[patch_A, : self.around.num_before]
            before_AS = _pick(self.padded_R, self.rows_A, slots_AS)
            palette_AV = self.counts_RV[self.rows_A].log1p()
            offset_A2 = self.model.offsets(patch_A, self.corner_R2[self.rows_A])
            x_AD = self.model.tokens(
                before_AS, self.previous_RI[self.rows_A], palette_AV, offset_A2
            )
            state_GAD = self._read(x_AD.repeat(self.num_passes, 1), patch_A, drawn_A)
            self._draw_pixels(
                self.rows_A[drawn_A],
                patch_A[drawn_A],
                state_GAD[:, drawn_A],
                before_AS[drawn_A],
                palette_AV[drawn_A],
                offset_A2[drawn_A],
            )
        yield self._canvas(self.particles.choose())

    def _canvas(self, rows_B: Tensor) -> Tensor:
        return self.around.crop(self.padded_R)[rows_B].to(torch.uint8)

    def _read(self, x_XD: Tensor, at_A: Tensor, drawn_A: Tensor) -> Tensor:
        """States (G, A, D) of one more token each, without its class, at these positions."""
        place = self.cache.length - self.text_XT.shape[1]
        self.seen_RL[self.rows_A, place] = drawn_A
        mask = None
        if self.particles.num_particles > 1 or self.text_XT.shape[1]:
            seen_AL = self.seen_RL[self.rows_A, : place + 1]
            seen_AL[:, -1] = True  # a row that waits needs something to see
            seen_XL = torch.cat([self.text_XT, seen_AL.repeat(self.num_passes, 1)], 1)
            mask = seen_XL[:, None, None]
        at_X1 = at_A.repeat(self.num_passes)[:, None]
        x_X1D = (x_XD + self.class_XD)[:, None]
        state_X1D = self.model.transformer(x_X1D, self.cache, at=at_X1, mask=mask)
        return state_X1D[:, 0].unflatten(0, (self.num_passes, -1))

    def _forget(self, going_A: Tensor) -> None:
        """Take finished images out of the cache, once they are a fifth of it: it is a copy."""
        if going_A.sum() < 0.8 * len(going_A):
            self.rows_A = self.rows_A[going_A]
            going_X = going_A.repeat(self.num_passes)
            self.class_XD, self.text_XT = self.class_XD[going_X], self.text_XT[going_X]
            self.cache.select(going_X.nonzero().squeeze(1))

    def _resample(self) -> None:
        parent_R = self.particles.resample()
        if parent_R is None:
            return
        names = "padded_R", "counts_RV", "law_RH", "previous_RI", "corner_R2", "next_R", "seen_RL"
        for name in names:
            setattr(self, name, getattr(self, name)[parent_R])
        # Images are in the cache with all their rows, or not at all.
        place_R = torch.zeros_like(parent_R)
        place_R[self.rows_A] = torch.arange(len(self.rows_A), device=parent_R.device)
        parent_A = place_R[parent_R[self.rows_A]]
        first_G1 = torch.arange(self.num_passes, device=parent_A.device)[:, None] * len(parent_A)
        self.cache.select((first_G1 + parent_A).flatten())

    def _find_ink(self, rows_N: Tensor, state_GND: Tensor) -> None:
        """Move ``next`` of these rows to their next patch with ink.

        Several patches' gates are drawn at once; those behind the first one with ink are drawn
        again when their turn comes, from the same uniform numbers.
        """
        state_GNW = self.model.gate.state(state_GND)
        next_N = self.next_R[rows_N] + 1
        search = (next_N < self.num_patches).nonzero().squeeze(1)
        while len(search):
            # A search costs its own while few rows take part, then what gates drawn in vain do.
            num_ahead = max(2, min(self.model.grid, GATES // len(search)))
            ahead_C = torch.arange(num_ahead, device=rows_N.device)
            rows = rows_N[search]
            patch_NC = next_N[search, None] + ahead_C
            inside_NC = patch_NC < self.num_patches
            patch_NC = patch_NC.clamp(max=self.num_patches - 1)
            slots_NCS = self.around.slot_index[patch_NC]
            before_NCS, own_NCS = slots_NCS.split([self.around.num_before, self.around.num_own], -1)
            around_NCF = self.around.embed(_pick(self.padded_R, rows, before_NCS))
            logits_GNC = self.model.gate(state_GNW[:, search, None], around_NCF, patch_NC)
            logits_NC = guide(logits_GNC.flatten(), self.how.guidance).view_as(patch_NC)
            binary = torch.stack([torch.zeros_like(logits_NC), logits_NC], -1).flatten(0, 1)
            uniform_NC = self.uniform_RPU[rows[:, None], patch_NC, 0]
            drawn = draw_categorical(binary, uniform_NC.flatten(), self.how).view_as(patch_NC)
            kept_NCI = _pick(self.kept_R, rows, own_NCS)
            must_ink_NC = (kept_NCI > 0).any(-1)
            must_blank_NC = (kept_NCI == 0).all(-1)
            inked_NC = (((drawn == 1) & ~must_blank_NC) | must_ink_NC) & inside_NC
            found_N = inked_NC.any(1)
            step_N = torch.where(found_N, inked_NC.int().argmax(1), len(ahead_C))
            if self.particles.num_particles > 1:
                bound_NC = (must_ink_NC | must_blank_NC) & inside_NC & (ahead_C <= step_N[:, None])
                log_prob_NC = F.logsigmoid(
                    torch.where(must_ink_NC, logits_NC, -logits_NC) / self.how.temperature
                )
                self.particles.weigh(rows, (log_prob_NC * bound_NC).sum(1))
            next_N[search] = (next_N[search] + step_N).clamp(max=self.num_patches)
            search = search[~found_N & (next_N[search] < self.num_patches)]
        self.next_R[rows_N] = next_N

    def _draw_pixels(
        self,
        rows_N: Tensor,
        patch_N: Tensor,
        state_GND: Tensor,
        before_NS: Tensor,
        palette_NV: Tensor,
        offset_N2: Tensor,
    ) -> None:
        """Draw one patch with ink in each of these rows."""
        head, own = self.model.head, self.around.num_own
        own_slots_NI = self.around.slot_index[patch_N, -own:]
        told_GNIW = head.told(state_GND, offset_N2).unflatten(-1, (-1, head.width))
        told_GNIW = told_GNIW + self._look(before_NS, self.before_IS)
        law_NIDV = None
        if self.model.law is not None:
            law_NIDV = self.model.law.chances(self.law_RH[rows_N], patch_N)

        def logits_of(pixels: slice, own_NI: Tensor) -> Tensor:
            """Logits (N, ., V) of these pixels, each given those before it in the patch."""
            x_GNIW = told_GNIW[:, :, pixels] + self._look(own_NI, self.own_II[pixels])
            law = None if law_NIDV is None else law_NIDV[:, pixels]
            logits_GNIV = head.logits(x_GNIW, palette_NV[:, None], law, self.readout)
            logits_NIV = guide(logits_GNIV.flatten(0, 1), self.how.guidance)
            if pixels.stop == own:  # there is ink somewhere in this patch
                logits_NIV[(own_NI[:, :-1] == 0).all(-1), -1, 0] = float("-inf")
            return logits_NIV

        kept_NI = _pick(self.kept_R, rows_N, own_slots_NI)
        uniform_NI = self.uniform_RPU[rows_N, patch_N, 1:]
        any_kept = bool((kept_NI != FREE).any())
        if len(rows_N) <= FEW and not any_kept:
            own_NI = self._from_guesses(logits_of, uniform_NI)
        else:
            own_NI = self._one_by_one(logits_of, uniform_NI, rows_N, kept_NI if any_kept else None)
        self.padded_R[rows_N[:, None], own_slots_NI] = own_NI
        self.previous_RI[rows_N] = own_NI
        if self.model.law is not None:
            self.law_RH[rows_N] += self.model.law.evidence(own_NI, patch_N)
        start_N2 = self.model.starts_P2[patch_N]
        first_N2 = first_ink(own_NI, start_N2, self.model.config.image_size)
        self.corner_R2[rows_N] = torch.minimum(self.corner_R2[rows_N], first_N2)
        self.counts_RV[rows_N] = self.counts_RV[rows_N].scatter_add(
            -1, own_NI, torch.ones_like(own_NI, dtype=self.counts_RV.dtype)
        )

    def _one_by_one(
        self,
        logits_of: Callable[[slice, Tensor], Tensor],
        uniform_NI: Tensor,
        rows_N: Tensor,
        kept_NI: Tensor | None,
    ) -> Tensor:
        """A patch's pixels (N, I), each drawn or kept after those before it."""
        own_NI = torch.zeros_like(uniform_NI, dtype=torch.long)
        for i in range(self.around.num_own):
            logits_NV = logits_of(slice(i, i + 1), own_NI).squeeze(1)
            drawn_N = draw_categorical(logits_NV, uniform_NI[:, i], self.how)
            if kept_NI is not None:
                kept_N = kept_NI[:, i]
                bound_N = kept_N != FREE
                if self.particles.num_particles > 1:
                    weight_N = log_prob(logits_NV, kept_N.clamp(min=0), self.how)
                    self.particles.weigh(rows_N, weight_N.masked_fill(~bound_N, 0))
                drawn_N = torch.where(bound_N, kept_N, drawn_N)
            own_NI[:, i] = drawn_N
        return own_NI

    def _from_guesses(
        self, logits_of: Callable[[slice, Tensor], Tensor], uniform_NI: Tensor
    ) -> Tensor:
        """The same pixels in fewer passes: predictive sampling (arXiv 2002.09928).

        All are drawn at once from a guess of all, and again from what came of it. Those before
        the first wrong guess are right, so what no longer changes is what they draw one by one.
        """
        guess_NI = torch.zeros_like(uniform_NI, dtype=torch.long)
        while True:
            logits_NIV = logits_of(slice(0, self.around.num_own), guess_NI)
            own_NI = draw_categorical(
                logits_NIV.flatten(0, 1), uniform_NI.flatten(), self.how
            ).view_as(guess_NI)
            if torch.equal(own_NI[:, :-1], guess_NI[:, :-1]):  # nothing hangs on the last one
                return own_NI
            guess_NI = own_NI

    def _look(self, values_NS: Tensor, first_IS: Tensor) -> Tensor:
        """What these pixels around a patch, or in it, add to its own ones: (N, I, W)."""
        row_NIS = first_IS + values_NS[:, None]
        sum_MW = F.embedding_bag(row_NIS.flatten(0, 1), self.contributions, mode="sum")
        return sum_MW.unflatten(0, row_NIS.shape[:2])


def _pick(values_RL: Tensor, rows_N: Tensor, index: Tensor) -> Tensor:
    """``values[rows[n], index[n]]`` of every n, shaped as the index (N, ...).

    By flat numbers: four times as fast as indexing in two dimensions on a CPU.
    """
    flat = rows_N.view(-1, *[1] * (index.ndim - 1)) * values_RL.shape[1] + index
    return values_RL.flatten().index_select(0, flat.flatten()).view(index.shape)
