"""How a patch model draws: all images at once, each going from one patch with ink to the next.

``find_ink`` draws gates until a patch has ink; ``step`` reads that patch's token and draws its
values. Gate and values are a patch's *symbols*. Each is drawn with one of the image's own uniform
numbers, so no image depends on its batch. In coding, the coder decides the symbols (entropy.py).
Around kept pixels, the particles of an image compete (particles.py).

Shapes: as in decoder.py, and: K particles, R rows, one per image or particle, N rows that draw, G
passes (with guidance: class and null class), T tokens in the cache, U = 1 + I, C gates drawn ahead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.models.patch.decoder import PatchDecoder
from mnist_transformer.networks.conditioning import guide
from mnist_transformer.networks.drawing import draw_categorical, draw_from_guesses, log_prob
from mnist_transformer.networks.entropy import Coder
from mnist_transformer.networks.neighbourhood import Neighbourhood
from mnist_transformer.networks.particles import Particles
from mnist_transformer.networks.transformer import KVCache, Transformer
from mnist_transformer.options import Sampling

GATES = 512  # drawn at once in a search for ink
FREE = -1  # stands for a symbol that is to be drawn


def symbols_of(around: Neighbourhood, images: Tensor) -> Tensor:
    """The symbols int64 (B, P, U) of images (B, C, H, W), in which values may be FREE."""
    own_BPI = around.pad(images)[:, around.slot_index[:, around.num_before :]]
    blank_BPI = own_BPI == around.background
    inked_BP = (~blank_BPI & (own_BPI != FREE)).any(-1)
    gate_BP = torch.where(inked_BP | blank_BPI.all(-1), inked_BP.long(), FREE)
    return torch.cat([gate_BP[..., None], own_BPI], -1)


@dataclass(eq=False)
class Drawing:
    """The rows of one drawing, and the steps that change them."""

    guessed_bits = 512  # drawn at once from guesses, in all rows together

    decoder: PatchDecoder
    transformer: Transformer
    cache: KVCache  # of R * G rows; holds the text before the images
    seen_RGT: Tensor  # bool, which tokens in the cache a row attends to
    class_RGD: Tensor  # added to every token; with guidance, those of the null class too
    given_RPU: Tensor  # what decides each symbol: here a number in [0, 1)
    how: Sampling

    def __post_init__(self) -> None:
        self.around, self.num_patches = self.decoder.around, self.decoder.around.num_patches
        (num_rows, self.num_passes, _), device = self.class_RGD.shape, self.class_RGD.device
        self.table = (self.around.features @ self.decoder.head.window.weight).flatten(0, 1)
        shape = num_rows, *self.around.image_shape
        self.drawn = torch.full(shape, self.around.background, device=device)
        self.place_R = torch.arange(num_rows, device=device)  # where in ``drawn`` a row belongs
        self.canvas_R = self.around.pad(self.drawn)
        self.next_R = torch.full_like(self.place_R, -1)  # the next patch with ink, or P
        self.read(torch.zeros_like(self.class_RGD[:, 0]), self.next_R + 1 + self.num_patches)

    def steps(self) -> Iterator[Callable[[], Tensor]]:
        """Yield functions that make images uint8 (B, C, H, W), the last ones finished."""
        drawn_N = self.place_R
        while True:
            self.find_ink(drawn_N)
            yield self.canvas
            drawn_N = (self.next_R < self.num_patches).nonzero().squeeze(1)
            if not len(drawn_N):
                return
            if 5 * len(drawn_N) < 4 * len(self.place_R):  # rarely, as it copies the cache
                self.canvas()  # stores the rows that end here
                self.place_R = self.place_R[drawn_N]
                self.take(drawn_N)
                drawn_N = torch.arange(len(drawn_N), device=drawn_N.device)
            self.step(drawn_N)

    def canvas(self, rows_B: Tensor | slice = slice(None)) -> Tensor:
        """Images as they are now, uint8 (B, C, H, W): those of all rows, or of some."""
        self.drawn[self.place_R] = self.around.crop(self.canvas_R)
        return self.drawn[rows_B].to(torch.uint8)

    def take(self, index: Tensor) -> None:
        """Continue with these rows."""
        for name in ("seen_RGT", "class_RGD", "canvas_R", "next_R", "state_RGD"):
            setattr(self, name, getattr(self, name)[index])
        pass_G = torch.arange(self.num_passes, device=index.device)
        self.cache.select((index[:, None] * self.num_passes + pass_G).flatten())

    def read(self, x_RD: Tensor, at_R: Tensor, reads_R: Tensor | None = None) -> None:
        """Read one more token per row, at these positions.

        ``reads_R``, bool: the rows that read it; for the others it is a gap in the cache.
        """
        x_RGD = x_RD[:, None] + self.class_RGD
        self.seen_RGT = F.pad(self.seen_RGT, (0, 1), value=True)
        if reads_R is not None:
            self.seen_RGT[..., -1] = reads_R[:, None]
        mask = None if self.seen_RGT.all() else self.seen_RGT.flatten(0, 1)[:, None, None]
        at = at_R.repeat_interleave(self.num_passes)[:, None]
        state = self.transformer(x_RGD.flatten(0, 1)[:, None], self.cache, at=at, mask=mask)
        self.state_RGD = state.view_as(x_RGD)  # of the last token

    def find_ink(self, rows_N: Tensor) -> None:
        """Move ``next`` of these rows to their next patch with ink.

        Gates are drawn ahead. Those after the ink are drawn again later, with the same numbers.
        """
        gate, canvas_R = self.decoder.gate, self.canvas_R
        next_N = self.next_R[rows_N] + 1
        search = torch.arange(len(rows_N), device=rows_N.device)
        while gate is not None and len(search):
            # With few rows a search has a fixed cost; with many, gates drawn in vain cost more.
            num_ahead = max(2, min(self.around.grid[1], GATES // len(search)))
            patch_NC = next_N[search, None] + torch.arange(num_ahead, device=rows_N.device)
            within = patch_NC % self.num_patches
            index = self.around.slot_index[within, : self.around.num_before]
            index = index + rows_N[search, None, None] * canvas_R.shape[1]
            # Flat indices: four times as fast on a CPU as two per value.
            around = canvas_R.flatten().index_select(0, index.flatten()).view_as(index)
            seen = gate.look(self.around.embed(around), within)[:, None]
            state_NGW = gate.state(self.state_RGD[rows_N[search]])
            logits_NGC = gate(state_NGW[:, :, None], seen)
            logits_NC = guide(logits_NGC.transpose(0, 1), self.how.guidance)[0]
            inked_NC = self.draw_gates(logits_NC, rows_N[search], patch_NC)
            inked_NC |= patch_NC >= self.num_patches  # the search ends after the last patch
            step_N = F.pad(inked_NC, (0, 1), value=True).int().argmax(1)
            next_N[search] += step_N
            search = search[step_N == num_ahead]
        self.next_R[rows_N] = next_N

    def draw_gates(self, logits_NC: Tensor, rows_N: Tensor, patch_NC: Tensor) -> Tensor:
        """Whether these patches have ink, bool (N, C)."""
        binary = F.pad(logits_NC[..., None], (1, 0))
        return self.draw(binary, rows_N[:, None], patch_NC % self.num_patches, 0) == 1

    def draw(self, logits: Tensor, rows: Tensor, patch: Tensor, symbol: int) -> Tensor:
        """Symbols (...) of patches (...) in these rows, given their logits (..., V)."""
        uniform = self.given_RPU[self.place_R[rows], patch, symbol]
        return draw_categorical(logits.flatten(0, -2), uniform.flatten(), self.how).view_as(uniform)

    def step(self, rows_N: Tensor, reads_R: Tensor | None = None) -> None:
        """Read the token of each row's next patch (see ``read``), and draw that patch in rows N."""
        around, head = self.around, self.decoder.head
        patch_R = self.next_R.clamp(max=self.num_patches - 1)
        values_RS = self.canvas_R.gather(1, around.slot_index[patch_R])
        x_RD = self.decoder.token(around.embed(values_RS[:, : around.num_before]))
        self.read(x_RD, patch_R, reads_R)
        values_NS, patch_N = values_RS[rows_N], patch_R[rows_N]
        state_NGIW = head.state(self.state_RGD[rows_N]).unflatten(-1, (-1, head.width))
        own_NI = values_NS[:, around.num_before :]

        def logits(of: Tensor | slice, start: int, stop: int) -> Tensor:
            seen_NIW = head.window.look(self.table, values_NS[of], start, stop)
            output_NGIO = head(state_NGIW[of, :, start:stop] + seen_NIW[:, None])
            predicted_NI = self.decoder.predict(values_NS[of])
            if predicted_NI is not None:
                predicted_NI = predicted_NI[:, None, start:stop]
            logits_NGIV = head.logits(output_NGIO, predicted_NI)
            logits_NIV = guide(logits_NGIV.transpose(0, 1), self.how.guidance)[0]
            last = stop == around.num_own
            return self.decoder.not_blank(logits_NIV, own_NI[of]) if last else logits_NIV

        def then(start: int, stop: int, guess_NI: Tensor, row_N: Tensor) -> Tensor:
            own_NI[row_N, start:stop] = guess_NI
            return logits(row_N, start, stop)

        guessed_bits = 0 if head.logistics else self.guessed_bits  # guesses fail on photographs
        step = guessed_bits // (len(rows_N) * (around.num_levels.bit_length() - 1))
        for start in range(0, around.num_own, max(step, 1)):
            if step <= 1:
                logits_NV = logits(slice(None), start, start + 1)[:, 0]
                own_NI[:, start] = self.draw(logits_NV, rows_N, patch_N, 1 + start)
                continue
            stop = min(start + step, around.num_own)
            u_NI = self.given_RPU[self.place_R[rows_N], patch_N, 1 + start : 1 + stop]
            own_NI[:, start:stop] = draw_from_guesses(partial(then, start, stop), u_NI, self.how)
        self.canvas_R[rows_N[:, None], around.slot_index[patch_N, around.num_before :]] = own_NI


@dataclass(eq=False)
class CodedDrawing(Drawing):
    """A drawing of given symbols, which a coder writes; a coder that reads ignores them."""

    guessed_bits = 0
    coder: Coder

    def draw_gates(self, logits_NC: Tensor, rows_N: Tensor, patch_NC: Tensor) -> Tensor:
        inked_NC = torch.zeros_like(patch_NC, dtype=torch.bool)
        for ahead, patch_N in enumerate(patch_NC.T):  # none after the first patch with ink
            left = ((patch_N < self.num_patches) & ~inked_NC.any(1)).nonzero().squeeze(1)
            binary = F.pad(logits_NC[left, ahead, None], (1, 0))
            inked_NC[left, ahead] = self.draw(binary, rows_N[left], patch_N[left], 0) == 1
        return inked_NC

    def draw(self, logits: Tensor, rows: Tensor, patch: Tensor, symbol: int) -> Tensor:
        return self.coder.code(logits, self.given_RPU[self.place_R[rows], patch, symbol])


@dataclass(eq=False)
class DrawingAround(Drawing):
    """A drawing around kept pixels, by K particles per image.

    A patch with kept ink has ink, a patch kept entirely blank is blank, and a kept value replaces
    a drawn one. Each multiplies a particle's weight by the probability that the model gave it.
    """

    guessed_bits = 0
    kept_RPU: Tensor  # ``symbols_of`` what is kept
    particles: Particles

    def steps(self) -> Iterator[Callable[[], Tensor]]:
        """Yield functions that make uint8 (B, C, H, W): each image's heaviest particle, and at the
        end one drawn by weight."""
        drawn_N = self.place_R
        while len(drawn_N):
            self.find_ink(drawn_N)
            if (parent_R := self.particles.resample()) is not None:
                self.take(parent_R)  # each goes on from its parent, with its own randomness
            # Particles wait for those of their image whose next patch comes first, so that
            # competing weights account for the same kept values.
            next_BK = self.next_R.view(-1, self.particles.num_particles)
            first_B1 = next_BK.amin(1, keepdim=True)
            draws_R = ((next_BK == first_B1) & (next_BK < self.num_patches)).flatten()
            drawn_N = draws_R.nonzero().squeeze(1)
            if len(drawn_N):
                yield partial(self.canvas, self.particles.best())
                self.step(drawn_N, draws_R)
        yield partial(self.canvas, self.particles.choose())

    def draw_gates(self, logits_NC: Tensor, rows_N: Tensor, patch_NC: Tensor) -> Tensor:
        inked_NC = super().draw_gates(logits_NC, rows_N, patch_NC)
        kept_NC = self.kept_RPU[rows_N[:, None], patch_NC % self.num_patches, 0]
        # Gates after the first patch with ink are drawn again later, and weigh then.
        weighs_NC = (patch_NC < self.num_patches) & (inked_NC.cumsum(1) - inked_NC.int() == 0)
        weighs_NC &= kept_NC != FREE
        logits_NC = torch.where(kept_NC == 1, logits_NC, -logits_NC) / self.how.temperature
        self.particles.weigh(rows_N, (F.logsigmoid(logits_NC) * weighs_NC).sum(1))
        return inked_NC

    def draw(self, logits: Tensor, rows: Tensor, patch: Tensor, symbol: int) -> Tensor:
        kept = self.kept_RPU[rows, patch, symbol]
        if symbol != 0:
            weight_N = log_prob(logits, kept.clamp(min=0), self.how)
            self.particles.weigh(rows, weight_N.masked_fill(kept == FREE, 0))
        return torch.where(kept == FREE, super().draw(logits, rows, patch, symbol), kept)
