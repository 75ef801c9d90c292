"""Patch by patch, pixel by pixel inside a patch: exact likelihood with P = H*W/s^2 tokens.

    p(image | class) = prod_t p(blank_t | patches < t) * prod_i p(x_ti | x_t<i, patches < t)

A causal transformer runs over the P patches in raster order; its state for patch t has seen the
patches before t only. A gate says whether patch t is blank (all zeros, as most of MNIST is). If
not, the *pixel head* draws its s*s pixels one after another: pixel i sees the transformer's
state, the pixels already drawn around it (weights shared by all i, masked to the order of
drawing as in MADE, arXiv 1502.03509) and, through a few residual MLPs, becomes a softmax over
the grey levels. Nothing attends inside a patch, so a patch costs one transformer step.

Shapes: B batch, P patches, N patches with ink, S slots of a neighbourhood, I = s*s pixels of a
patch, E features of a pixel value, W width of the head, V grey levels, D dim.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.conditioning import ClassEmbedding, guide, with_null
from mnist_transformer.models.base import NLL, GenerativeModel
from mnist_transformer.sampling import Keep, Noise, Sampling, draw_categorical
from mnist_transformer.transformer import MLP, KVCache, Transformer, rms_norm

FREE = -1  # where a kept value would stand: this pixel is to be drawn


@dataclass(frozen=True)
class PatchConfig:
    """Sizes of a patch model.

    Args:
        num_levels: grey levels V; pixels are 0 to V - 1.
        dim, depth, num_heads, mlp_dim: the transformer.
        head_width, head_depth, head_mlp_dim: the pixel head's residual MLPs.
        margin: how many pixels around itself a patch, and a pixel, sees directly.
        class_drop: share of training images that are shown without their class.
    """

    image_size: int = 28
    channels: int = 1
    patch_size: int = 4
    num_levels: int = 256
    num_classes: int = 10
    dim: int = 256
    depth: int = 5
    num_heads: int = 4
    mlp_dim: int = 1024
    positions: str = "learned"
    head_width: int = 128
    head_depth: int = 3
    head_mlp_dim: int = 256
    margin: int = 4
    dropout: float = 0.0
    class_drop: float = 0.1

    def __post_init__(self) -> None:
        if self.channels != 1:
            raise ValueError(f"channels is {self.channels}, expected 1 for a patch model")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size is {self.image_size}, expected a multiple of "
                f"patch_size {self.patch_size}"
            )

    def build(self) -> "Patch":
        return Patch(self)


class Neighbourhood(nn.Module):
    """What was drawn around each patch, as features: slots before the patch, then its own pixels.

    The slots are the ``margin`` rows above the patch, the ``margin`` columns left of it and, in
    raster order, the patch itself.
    """

    features: Tensor
    slot_index: Tensor

    def __init__(self, config: PatchConfig) -> None:
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

    def embed(self, values: Tensor) -> Tensor:
        """(..., S) pixel values to features (..., S * E)."""
        return F.embedding(values, self.features).flatten(-2)


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


class PixelHead(nn.Module):
    """Distribution of each pixel of a patch, given the state and the pixels before it."""

    offset_index: Tensor

    def __init__(self, config: PatchConfig, neighbourhood: Neighbourhood) -> None:
        super().__init__()
        self.num_pixels, self.width = config.patch_size**2, config.head_width
        self.num_before, self.num_features = neighbourhood.num_before, neighbourhood.num_features
        self.state = nn.Linear(config.dim, self.num_pixels * self.width)
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
        self.output = nn.Linear(self.width, config.num_levels)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.copy.weight)
        nn.init.zeros_(self.copy.bias)

    def _offset(
        self, slot: tuple[int, int], j: int, i: int, margin: int, own: list[tuple[int, int]]
    ) -> int:
        row, column = slot[0] - own[i][0] + margin, slot[1] - own[i][1] + margin
        reach = 2 * margin + 1
        seen = j - self.num_before < i and 0 <= row < reach and 0 <= column < reach
        return row * reach + column if seen else reach * reach

    def window_weight(self) -> Tensor:
        """The shared window, laid out for whole patches: (S, E, I, W)."""
        rows = F.pad(self.window.flatten(1), (0, 0, 0, 1))
        weight = F.embedding(self.offset_index, rows)  # (S, I, E * W)
        return weight.unflatten(-1, (self.num_features, self.width)).transpose(1, 2)

    def forward(self, state_ND: Tensor, around_NF: Tensor, palette_NV: Tensor) -> Tensor:
        """Logits (N, I, V) of all pixels at once; ``around`` holds the S * E features."""
        weight = self.window_weight().flatten(2).flatten(0, 1)
        x_NIW = (self.state(state_ND) + around_NF @ weight).unflatten(-1, (-1, self.width))
        return self.logits(x_NIW, palette_NV[:, None])

    def logits(self, x: Tensor, palette: Tensor) -> Tensor:
        """Logits (..., V) from the summed inputs (..., W) and the palette (..., V)."""
        for mlp in self.mlps:
            x = x + mlp(rms_norm(x))
        x = rms_norm(x)
        return torch.addcmul(self.output(x), self.copy(x), palette)


class Patch(GenerativeModel):
    """See the module's docstring. Images uint8 (B, 1, H, W) with values below ``num_levels``."""

    honours = frozenset({"temperature", "top_p", "guidance"})
    adamw_modules = ("classes", "gate", "head.copy", "head.output")

    def __init__(self, config: PatchConfig) -> None:
        super().__init__(config)
        self.grid = config.image_size // config.patch_size
        self.num_patches = self.grid**2
        self.around = Neighbourhood(config)
        self.embed = nn.Linear(self.around.num_before * self.around.num_features, config.dim)
        self.palette = nn.Linear(config.num_levels, config.dim, bias=False)
        self.classes = ClassEmbedding(config.num_classes, config.dim, config.class_drop)
        self.transformer = Transformer(
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            num_tokens=self.num_patches,
            grid_width=self.grid,
            positions=config.positions,
            dropout=config.dropout,
        )
        self.gate = nn.Linear(config.dim, 1)
        self.head = PixelHead(config, self.around)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Negative log-likelihood in nats (B,)."""
        values_BPS = self.around.values(self.around.pad(images))
        before_BPS, own_BPI = values_BPS.split([self.around.num_before, self.around.num_own], -1)
        palette_BPV = self._palettes(own_BPI)
        states_BPD = self.transformer(self._tokens(before_BPS, palette_BPV, cond))
        inked_BP = (own_BPI > 0).any(-1)
        gate_BP = self.gate(states_BPD).squeeze(-1).float()
        nats_BP = F.binary_cross_entropy_with_logits(
            gate_BP, inked_BP.to(gate_BP.dtype), reduction="none"
        )
        own_NI = own_BPI[inked_BP]
        logits_NIV = self.head(
            states_BPD[inked_BP], self.around.embed(values_BPS[inked_BP]), palette_BPV[inked_BP]
        ).float()
        # There is ink somewhere: when all pixels but the last are zero, the last one cannot be.
        logits_NIV[(own_NI[:, :-1] == 0).all(-1), -1, 0] = float("-inf")
        pixel_nats_N = F.cross_entropy(
            logits_NIV.flatten(0, 1), own_NI.flatten(), reduction="none"
        ).view(-1, own_NI.shape[1])
        return nats_BP.masked_scatter(inked_BP, nats_BP[inked_BP] + pixel_nats_N.sum(-1)).sum(-1)

    def nll(self, images: Tensor, cond: Tensor | Sequence[int] | None) -> NLL:
        """Exact negative log-likelihood in nats (B,), over all pixels."""
        images = self.check_images(images)
        if len(images) and images.max().item() >= self.config.num_levels:
            raise ValueError(
                f"a pixel is {images.max().item()}, expected below {self.config.num_levels}"
            )
        return NLL(self.loss(images, self.check_cond(cond, len(images))), exact=True)

    def _tokens(self, before_BPS: Tensor, palette_BPV: Tensor, cond_B: Tensor) -> Tensor:
        x_BPD = self.embed(self.around.embed(before_BPS)) + self.palette(palette_BPV)
        # With guidance the same canvases are read twice: with their class, and without.
        x_BPD = x_BPD.repeat(len(cond_B) // max(len(x_BPD), 1), 1, 1)
        return x_BPD + self.classes(cond_B)[:, None]

    def _palettes(self, own_BPI: Tensor) -> Tensor:
        """log(1 + how often each grey level was drawn in the patches before): (B, P, V)."""
        counts_BPV = torch.zeros(*own_BPI.shape[:2], self.config.num_levels, device=own_BPI.device)
        counts_BPV.scatter_add_(-1, own_BPI, torch.ones_like(own_BPI, dtype=counts_BPV.dtype))
        return (counts_BPV.cumsum(1) - counts_BPV).log1p()

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """One canvas a patch. Kept pixels take the place of drawn ones as their turn comes."""
        uniform_BPU = noise.uniform(self.num_patches, 1 + self.around.num_own)
        cond = with_null(cond, self.classes.null_class, how.guidance)
        canvas = torch.zeros(len(noise), *self.image_shape, dtype=torch.uint8, device=self.device)
        padded = self.around.pad(canvas)
        kept = None
        if keep is not None:
            kept = self.around.pad(torch.where(keep.mask, keep.images.long(), FREE))
        counts_BV = torch.zeros(len(noise), self.config.num_levels, device=self.device)
        cache = KVCache(self.transformer, len(cond), device=self.device)
        weight_SEIW = self.head.window_weight()
        before_weight = weight_SEIW[: self.around.num_before].flatten(2).flatten(0, 1)
        own_weight = weight_SEIW[self.around.num_before :].flatten(0, 1)
        for patch, slots in enumerate(self.around.slot_index):
            before_slots, own_slots = slots.split([self.around.num_before, self.around.num_own])
            before_BS, own_BI = padded[:, before_slots], padded[:, own_slots]
            palette_BV = counts_BV.log1p()
            tokens = self._tokens(before_BS[:, None], palette_BV[:, None], cond)
            state = self.transformer(tokens, cache)[:, 0]
            gate_B = guide(self.gate(state).squeeze(-1), how.guidance)
            gate_B2 = torch.stack([torch.zeros_like(gate_B), gate_B], dim=-1)
            inked_B = draw_categorical(gate_B2, uniform_BPU[:, patch, 0], how) == 1
            kept_BI = torch.full_like(own_BI, FREE) if kept is None else kept[:, own_slots]
            inked_B |= (kept_BI > 0).any(-1)
            if inked_B.any():
                state_GND = state.unflatten(0, (-1, len(noise)))[:, inked_B]
                around_NX = self.around.embed(before_BS[inked_B]) @ before_weight
                own_BI[inked_B] = self._draw_pixels(
                    self.head.state(state_GND) + around_NX,
                    own_weight,
                    palette_BV[inked_B],
                    uniform_BPU[inked_B, patch, 1:],
                    kept_BI[inked_B],
                    how,
                )
                padded[:, own_slots] = own_BI
            counts_BV.scatter_add_(-1, own_BI, torch.ones_like(own_BI, dtype=counts_BV.dtype))
            row, column = (self.config.patch_size * i for i in divmod(patch, self.grid))
            size = self.config.patch_size
            canvas[:, 0, row : row + size, column : column + size] = own_BI.view(-1, size, size)
            yield canvas

    def _draw_pixels(
        self,
        x_GNX: Tensor,
        own_weight_FIW: Tensor,
        palette_NV: Tensor,
        uniform_NI: Tensor,
        kept_NI: Tensor,
        how: Sampling,
    ) -> Tensor:
        """int64 (N, I) of N patches with ink; G is 2 with guidance (class, null class), else 1."""
        x_GNIW = x_GNX.unflatten(-1, (-1, self.head.width))
        own_NI = torch.zeros_like(kept_NI)
        for i in range(self.head.num_pixels):
            # The weights of pixels not yet drawn are zero.
            x_GNW = x_GNIW[:, :, i] + self.around.embed(own_NI) @ own_weight_FIW[:, i]
            logits_GNV = self.head.logits(x_GNW, palette_NV)
            logits_NV = guide(logits_GNV.flatten(0, 1), how.guidance)
            if i == self.head.num_pixels - 1:
                logits_NV[(own_NI[:, :-1] == 0).all(-1), 0] = float("-inf")
            drawn_N = draw_categorical(logits_NV, uniform_NI[:, i], how)
            own_NI[:, i] = torch.where(kept_NI[:, i] == FREE, drawn_N, kept_NI[:, i])
        return own_NI
