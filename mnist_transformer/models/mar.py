"""Masked autoregression without quantization: MAR, arXiv 2406.11838.

    p(image | class) = prod_k prod_{i in S_k} p(x_i | x_j, j in S_1 ... S_k-1)

The P patches are drawn in a random order, the set S_k in step k: few at first and more as the
picture gets clear (cosine schedule, MaskGIT, arXiv 2202.04200). A transformer reads the known
patches, each seeing every other, and answers for each unknown one with a state z; the *head*, a
small residual network with adaptive norms, turns noise into the pixels of that patch by diffusion
given z: tokens stay continuous. Unlike in the paper an unknown token reads and is not read, so
that its state does not depend on which others are asked for: drawing computes the known patches
and those of the next set only. Two more things speed up learning: every token is told the known
pixels in a window around its patch, so that strokes go on across borders, and a *gate* first
decides whether a patch is blank, as most are, so that the head works on ink only.

Shapes: B images, P patches, L patches of one step, N patches to draw, K noise draws a patch, I
pixels of a patch, G readings (with guidance 2: class, null class; else 1), D dim, W head width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.networks.conditioning import ClassEmbedding, guide, ramp, with_null
from mnist_transformer.networks.diffusion import Diffusion, time_features, to_signed, to_uint8
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.patches import check_patch_size, cut, join
from mnist_transformer.networks.solvers import Normal, sample
from mnist_transformer.networks.transformer import MLP, Transformer, modulate, rms_norm
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.utils.devices import fast_autocast

NUM_TIME_FEATURES = 32
UNMASKING = ("cosine", "linear")


@dataclass(frozen=True)
class MARConfig:
    """Sizes of a masked autoregressive model, and how it is trained and drawn with.

    Args:
        dim, depth, num_heads, mlp_dim: the transformer.
        margin: how many pixels around a patch its token sees directly.
        blank_gate: decide first whether a patch is blank; else the head draws blank ones too.
        head_width, head_depth, head_mlp_dim: the head's residual blocks.
        head_steps, sampler: of the head's diffusion; ``Sampling.sampler`` goes first.
        num_draws: noise draws a masked patch in training.
        unmasking: share of unknown patches after a share u of the steps, "cosine" (cos(pi u /
            2)) or "linear" (1 - u); also how many are masked in training, u then uniform.
        min_mask_ratio: training masks this share or more; 0.7 in the paper.
        num_steps: sets S_k of a drawing, where ``Sampling`` says nothing else.
        class_drop: share of training images that are shown without their class.
        schedule, prediction, loss_space, time_mean, time_sd: see ``diffusion.Diffusion``.
    """

    image_size: int = 28
    channels: int = 1
    patch_size: int = 4
    num_classes: int = 10
    dim: int = 192
    depth: int = 5
    num_heads: int = 4
    mlp_dim: int = 768
    positions: str = "learned"
    margin: int = 4
    blank_gate: bool = True
    head_width: int = 192
    head_depth: int = 3
    head_mlp_dim: int = 256
    head_steps: int = 10
    sampler: str = "euler"
    num_draws: int = 4
    unmasking: str = "cosine"
    min_mask_ratio: float = 0.0
    num_steps: int = 16
    dropout: float = 0.0
    class_drop: float = 0.1
    schedule: str = "flow"
    prediction: str = "x"
    loss_space: str = "v"
    time_mean: float | None = 0.0
    time_sd: float = 1.0

    def __post_init__(self) -> None:
        check_patch_size(self.image_size, self.patch_size)
        if self.unmasking not in UNMASKING:
            raise ValueError(
                f"unmasking is {self.unmasking!r}, expected one of {', '.join(UNMASKING)}"
            )
        if not 0 <= self.min_mask_ratio < 1:
            raise ValueError(
                f"min_mask_ratio is {self.min_mask_ratio}, expected a number in [0, 1)"
            )
        Sampling(sampler=self.sampler, num_steps=self.num_steps)  # raise if these cannot be
        if self.num_steps > self.num_patches:
            raise ValueError(f"num_steps is {self.num_steps}, expected 1 to {self.num_patches}")
        _ = self.diffusion

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def diffusion(self) -> Diffusion:
        return Diffusion(
            self.schedule, self.prediction, self.loss_space, self.time_mean, self.time_sd
        )

    def build(self) -> "MAR":
        return MAR(self)


class DiffusionHead(nn.Module):
    """The network of the diffusion of one patch, given its state: residual MLPs, adaptive norms.

    State and time add up in the norms' scales, shifts and gates. The state's part is made once
    a patch, for all noise draws and all steps (``modulation``).
    """

    def __init__(self, config: MARConfig, num_pixels: int) -> None:
        super().__init__()
        width, depth = config.head_width, config.head_depth
        self.num_chunks = 3 * depth + 2
        self.input = nn.Linear(num_pixels, width)
        # A matrix each, so that Muon does not mix scales, shifts and gates.
        self.state = nn.ModuleList(nn.Linear(config.dim, width) for _ in range(self.num_chunks))
        self.time = nn.Linear(NUM_TIME_FEATURES, self.num_chunks * width)
        self.mlps = nn.ModuleList(MLP(width, config.head_mlp_dim) for _ in range(depth))
        self.output = nn.Linear(width, num_pixels)
        for linear in (self.time, self.output):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def modulation(self, z_ND: Tensor) -> Tensor:
        """(N, 1, chunks * W): the state's part of all scales, shifts and gates."""
        return torch.cat([linear(z_ND) for linear in self.state], dim=-1)[:, None]

    def forward(self, x_NKI: Tensor, t: Tensor, modulation: Tensor) -> Tensor:
        """Predictions (N, K, I) from noisy patches; t broadcasts to (N, K)."""
        time = self.time(time_features(t, NUM_TIME_FEATURES))
        chunks = (modulation + time).chunk(self.num_chunks, dim=-1)
        x_NKW = self.input(x_NKI)
        for i, mlp in enumerate(self.mlps):
            shift, scale, gate = chunks[3 * i : 3 * i + 3]
            x_NKW = x_NKW + (1 + gate) * mlp(modulate(rms_norm(x_NKW), shift, scale))
        return self.output(modulate(rms_norm(x_NKW), *chunks[-2:]))


class MAR(GenerativeModel):
    """See the module's docstring. Images uint8 (B, C, H, W)."""

    honours = frozenset({"guidance", "num_steps", "sampler", "temperature"})
    draws_in_fast_dtype = True
    adamw_modules = ("embed", "gate", "head.input", "head.time", "head.output")

    def __init__(self, config: MARConfig) -> None:
        super().__init__(config)
        self.diffusion = config.diffusion
        grid = config.image_size // config.patch_size
        self.num_patches = self.max_steps = config.num_patches  # one a step at least
        self.num_pixels = config.channels * config.patch_size**2
        self.window = config.patch_size + 2 * config.margin
        self.embed = nn.Linear((config.channels + 1) * self.window**2, config.dim)
        self.classes = ClassEmbedding(config.num_classes, config.dim, config.class_drop)
        self.transformer = Transformer(
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            num_tokens=self.num_patches,
            grid_width=grid,
            positions=config.positions,
            dropout=config.dropout,
            causal=False,
        )
        self.gate = nn.Linear(config.dim, 1) if config.blank_gate else None
        self.head = DiffusionHead(config, self.num_pixels)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Of each masked patch the gate's nats and the head's error a pixel; their sum over P (B,).

        All masked patches weigh alike, so an image of which little is known weighs most: what a
        digit looks like is decided there.
        """
        patches_BPI = cut(to_signed(images), self.config.patch_size)
        masked_BP = self._draw_mask(len(images)).to(images.device)
        order_BP = torch.arange(self.num_patches, device=images.device).expand_as(masked_BP)
        states_BPD = self._states(patches_BPI, order_BP, ~masked_BP, cond)
        z_ND, x0_NI = states_BPD[masked_BP], patches_BPI[masked_BP]
        if self.gate is None:
            losses_N = self._head_loss(z_ND, x0_NI)
        else:
            inked_N = (x0_NI > -1).any(-1)
            gate_N = self.gate(z_ND).squeeze(-1).float()
            losses_N = F.binary_cross_entropy_with_logits(
                gate_N, inked_N.to(gate_N.dtype), reduction="none"
            )
            errors = self._head_loss(z_ND[inked_N], x0_NI[inked_N])
            losses_N = losses_N.masked_scatter(inked_N, losses_N[inked_N] + errors)
        losses_BP = torch.zeros_like(masked_BP, dtype=losses_N.dtype)
        return losses_BP.masked_scatter(masked_BP, losses_N).sum(1) / self.num_patches

    def _head_loss(self, z_ND: Tensor, x0_NI: Tensor) -> Tensor:
        """(N,), mean over ``num_draws`` times and noises a patch."""
        modulation, num_draws = self.head.modulation(z_ND), self.config.num_draws

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            x_NKI, t_NK = x_t.unflatten(0, (-1, num_draws)), t.unflatten(0, (-1, num_draws))
            return self.head(x_NKI, t_NK, modulation).flatten(0, 1)

        losses = self.diffusion.loss(denoise, x0_NI.repeat_interleave(num_draws, 0))
        return losses.unflatten(0, (-1, num_draws)).mean(1)

    def _draw_mask(self, num_images: int) -> Tensor:
        """bool (B, P) on the CPU, true where unknown: one patch an image or more."""
        # As with the times of the diffusion, a batch covers all shares of masked patches.
        u = (torch.randperm(num_images) + torch.rand(1)) / max(num_images, 1)
        low = self.config.min_mask_ratio
        share_B1 = (low + (1 - low) * self._unknown_share(u)).unsqueeze(1)
        rank_BP = torch.rand(num_images, self.num_patches).argsort(1)
        return rank_BP < (share_B1 * self.num_patches).ceil().clamp(1, self.num_patches)

    def _unknown_share(self, u: Tensor) -> Tensor:
        return (u * (math.pi / 2)).cos() if self.config.unmasking == "cosine" else 1 - u

    def _states(
        self, patches_BPI: Tensor, order_BL: Tensor, known_BL: Tensor, cond: Tensor
    ) -> Tensor:
        """States (B, L, D) of the patches that ``order`` names; of all others nothing is known.

        With guidance the patches are read twice: cond is (2B,), and so are the states.
        """
        known_BP = torch.zeros(patches_BPI.shape[:2], device=patches_BPI.device)
        known_BP = known_BP.scatter(1, order_BL, known_BL.float())
        # Two kinds of plane: ink, from 0 to 2, and whether the pixel is known at all.
        ink_BPI = (patches_BPI + 1) * known_BP.unsqueeze(-1)
        size, margin = self.config.patch_size, self.config.margin
        flags_BPI = known_BP.unsqueeze(-1).expand(-1, -1, size**2)
        planes = join(torch.cat([ink_BPI, flags_BPI], dim=-1), size)
        windows_BPF = F.unfold(planes, self.window, padding=margin, stride=size).mT
        index = order_BL.unsqueeze(-1).expand(-1, -1, windows_BPF.shape[-1])
        x_BLD = self.embed(windows_BPF.gather(1, index))
        num_readings = len(cond) // len(x_BLD)
        x_BLD = x_BLD.repeat(num_readings, 1, 1) + self.classes(cond)[:, None]
        # Known tokens are read by all; an unknown one by itself alone.
        itself = torch.eye(order_BL.shape[1], dtype=torch.bool, device=order_BL.device)
        mask_BLL = (known_BL[:, None] | itself).repeat(num_readings, 1, 1)
        at_BL = order_BL.repeat(num_readings, 1)
        return self.transformer(x_BLD, at=at_BL, mask=mask_BLL[:, None])

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """One canvas a step. Patches that are kept whole are known from the start.

        A patch that is kept in part is drawn with its kept pixels held fast at every level of
        noise. Guidance rises over the steps, from near 1 to its full scale at the last.
        """
        num_steps, size = how.num_steps or self.config.num_steps, self.config.patch_size
        shape = (len(noise), *self.image_shape)
        patches_BPI = cut(torch.full(shape, -1.0, device=self.device), size)
        fixed_BPI = torch.zeros_like(patches_BPI, dtype=torch.bool)
        if keep is not None:
            fixed_BPI = cut(keep.mask.expand(shape).float(), size) > 0
            patches_BPI = torch.where(fixed_BPI, cut(to_signed(keep.images), size), patches_BPI)
        whole_BP = fixed_BPI.all(-1)
        # Known patches come first in the order, the others at random.
        rank_BP = torch.where(whole_BP, -1.0, noise.uniform(self.num_patches))
        order_BP = rank_BP.argsort(dim=1, stable=True)
        uniform_BP = noise.uniform(self.num_patches)
        x_1_BPI = self._normal(noise)
        for step, (first_B, last_B) in enumerate(pairwise(self._bounds(whole_BP, num_steps))):
            order_BL = order_BP[:, : int(last_B.max())]
            place_L = torch.arange(order_BL.shape[1], device=self.device)
            known_BL = place_L < first_B[:, None]
            row_N, place_N = (~known_BL & (place_L < last_B[:, None])).nonzero(as_tuple=True)
            chosen_N = row_N, order_BL[row_N, place_N]  # N patches of the batch
            scale = ramp(how.guidance, step, num_steps)
            reading = with_null(cond, self.classes.null_class, scale)
            with fast_autocast(self.device):  # as in training
                states_MLD = self._states(patches_BPI, order_BL, known_BL, reading)
            z_GND = states_MLD.unflatten(0, (-1, len(noise)))[:, row_N, place_N]
            if self.gate is not None:
                gate_N = guide(self.gate(z_GND.flatten(0, 1)).squeeze(-1), scale)
                inked_N = uniform_BP[chosen_N] < (gate_N / how.temperature).sigmoid()
                inked_N |= (patches_BPI[chosen_N] > -1).any(-1)  # kept ink
                chosen_N = chosen_N[0][inked_N], chosen_N[1][inked_N]
                z_GND = z_GND[:, inked_N]
            drawn_NI = self._draw(
                z_GND.flatten(0, 1),
                x_1_BPI[chosen_N],
                scale,
                how,
                partial(self._normal, noise, chosen_N),
                None if keep is None else (patches_BPI[chosen_N], fixed_BPI[chosen_N]),
            )
            # Rounded, as the known patches of training are.
            patches_BPI[chosen_N] = to_signed(to_uint8(drawn_NI))
            yield to_uint8(join(patches_BPI, size))

    def _normal(self, noise: Noise, chosen_N: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Noise (N, I) for the chosen patches, or (B, P, I).

        Drawn for all: an image's next numbers must not depend on how many were chosen.
        """
        x_BPI = noise.normal(self.num_patches, self.num_pixels)
        return x_BPI if chosen_N is None else x_BPI[chosen_N]

    def _draw(
        self,
        z_MD: Tensor,  # M is G * N
        x_1_NI: Tensor,
        scale: float,
        how: Sampling,
        normal: Normal,
        keep: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Pixels (N, I) of N patches by the head's diffusion, from their states."""
        with fast_autocast(self.device):
            modulation = self.head.modulation(z_MD)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            x_t = x_t.repeat(len(modulation) // max(len(x_t), 1), 1)
            with fast_autocast(self.device):
                predicted = self.head(x_t[:, None], t, modulation)[:, 0]
            return guide(predicted.float(), scale)

        *_, x_NI = sample(
            self.diffusion,
            denoise,
            x_1_NI,
            self.config.head_steps,
            how.sampler or self.config.sampler,
            normal,
            keep,
            temperature=how.temperature,
        )
        return x_NI

    def _bounds(self, known_BP: Tensor, num_steps: int) -> list[Tensor]:
        """How many patches of the order are known before each step and at the end: (B,) each.

        One patch a step at least, where there are as many.
        """
        num_known_B, unknown_B = known_BP.sum(1), (~known_BP).sum(1)
        bounds = []
        for step in range(num_steps + 1):
            share = self._unknown_share(torch.tensor(step / num_steps)).to(unknown_B.device)
            # The share of a whole number of patches may come out a rounding error below it.
            drawn_B = unknown_B - (unknown_B * share + 1e-4).floor().long()
            at_least = unknown_B.clamp(max=step)
            at_most = torch.maximum(unknown_B - (num_steps - step), at_least)
            bounds.append(num_known_B + drawn_B.clamp(at_least, at_most))
        return bounds
