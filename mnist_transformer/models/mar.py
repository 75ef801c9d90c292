"""Masked autoregression without quantization: MAR, arXiv 2406.11838.

    p(image | class) = prod_k prod_{i in S_k} p(x_i | x_j, j in S_1 ... S_k-1)

The P patches are drawn in a random order, the set S_k in step k: few at first, then more (cosine
schedule, MaskGIT, arXiv 2202.04200). A transformer attends to the known patches and predicts a
state z for each unknown one. The *head*, a small residual network with adaptive norms, turns noise
into that patch's pixels by diffusion given z: tokens stay continuous. Unlike in the paper, unknown
tokens attend but are never attended to. So their states do not depend on each other, and drawing
computes the known patches and those of the next set only. Two more things speed up learning. Each
token reads the known pixels in a window around its patch, so that strokes go on across borders. A
*gate* first decides whether a patch is blank, as most are, so that the head works on ink only.

Shapes: B images, P patches, L patches of one step, N patches to draw, K noise draws per patch, I
pixels of a patch, G readings (with guidance 2: class, null class; else 1), D dim, W head width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.config import DiffusionConfig
from mnist_transformer.models.guided import GuidedModel
from mnist_transformer.networks.conditioning import ClassEmbedding, guide, ramp, with_null
from mnist_transformer.networks.diffusion import time_features, to_signed, to_uint8
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.patches import cut, join
from mnist_transformer.networks.solvers import sample
from mnist_transformer.networks.transformer import MLP, modulate, rms_norm, zeroed
from mnist_transformer.networks.unmasking import known_counts, masks
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.utils.checks import check_share
from mnist_transformer.utils.devices import fast_autocast

NUM_TIME_FEATURES = 32


@dataclass(frozen=True)
class MARConfig(DiffusionConfig):
    """Sizes of a masked autoregressive model, and how it is trained and drawn with.

    Args:
        margin: number of pixels around a patch that its token sees directly.
        blank_gate: decide first whether a patch is blank, where the data set has a background.
        head_steps: steps of the head's diffusion.
        num_draws: noise draws per masked patch in training.
        min_mask_ratio: training masks this share or more; 0.7 in the paper.
        num_steps: sets S_k of a drawing, by default.
    """

    depth: int = 5
    margin: int = field(default=4, metadata={"least": 0})
    blank_gate: bool = True
    head_width: int = 192
    head_depth: int = 3
    head_mlp_dim: int = 256
    head_steps: int = 10
    num_draws: int = 4
    min_mask_ratio: float = 0.0
    num_steps: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("min_mask_ratio", self.min_mask_ratio)
        if self.num_steps > self.grid**2:
            raise ValueError(f"num_steps is {self.num_steps}, expected 1 to {self.grid**2}")


class DiffusionHead(nn.Module):
    """Residual MLPs with adaptive norms: state and time add up in scales, shifts and gates.

    The state's part is computed once per patch, for all noise draws and steps (``modulation``).
    """

    def __init__(
        self, num_pixels: int, state_dim: int, width: int, depth: int, mlp_dim: int
    ) -> None:
        super().__init__()
        self.num_chunks = 3 * depth + 2
        self.input = nn.Linear(num_pixels, width)
        # A matrix each, so that Muon does not mix scales, shifts and gates.
        self.state = nn.ModuleList(nn.Linear(state_dim, width) for _ in range(self.num_chunks))
        self.time = zeroed(nn.Linear(NUM_TIME_FEATURES, self.num_chunks * width))
        self.mlps = nn.ModuleList(MLP(width, mlp_dim) for _ in range(depth))
        self.output = zeroed(nn.Linear(width, num_pixels))

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


class MAR(GuidedModel):
    """See the module's docstring. Images uint8 (B, C, H, W)."""

    honours = frozenset({"guidance", "num_steps", "sampler", "temperature"})
    adamw_modules = ("embed", "gate", "head.input", "head.time", "head.output")

    def __init__(self, config: MARConfig) -> None:
        super().__init__(config)
        self.diffusion = config.diffusion
        self.num_patches = self.max_steps = config.grid**2  # one per step at least
        self.window = config.patch_size + 2 * config.margin
        self.embed = nn.Linear((config.channels + 1) * self.window**2, config.dim)
        self.classes = ClassEmbedding(self.num_classes, config.dim, config.class_drop)
        self.transformer = config.transformer(self.num_patches, config.grid, causal=False)
        gated = config.blank_gate and config.data.background is not None
        self.blank = to_signed(torch.tensor(config.data.background or 0, device="cpu")).item()
        self.gate = nn.Linear(config.dim, 1) if gated else None
        sizes = config.head_width, config.head_depth, config.head_mlp_dim
        self.head = DiffusionHead(config.num_patch_pixels, config.dim, *sizes)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Each masked patch's gate nats and head error per pixel; their sum / P, (B,).

        All masked patches weigh alike, so an image of which little is known weighs most.
        """
        patches_BPI = cut(to_signed(images), self.config.patch_size)
        least = self.config.min_mask_ratio
        masked_BP = masks(len(images), self.num_patches, least).to(images.device)
        order_BP = torch.arange(self.num_patches, device=images.device).expand_as(masked_BP)

        def read(cond: Tensor) -> Tensor:
            return self._states(patches_BPI, order_BP, ~masked_BP, cond)[masked_BP]

        z_ND, x0_NI = read(cond), patches_BPI[masked_BP]
        null_ND = cache(lambda: read(self.without_class(cond)))
        if self.gate is None:
            losses_N = self._head_loss(z_ND, null_ND, x0_NI)
        else:
            inked_N, gate = (x0_NI != self.blank).any(-1), self.gate
            gate_N = self.fitted(gate(z_ND), lambda: gate(null_ND())).squeeze(-1).float()
            losses_N = F.binary_cross_entropy_with_logits(gate_N, inked_N.float(), reduction="none")
            errors = self._head_loss(z_ND[inked_N], lambda: null_ND()[inked_N], x0_NI[inked_N])
            losses_N = losses_N.masked_scatter(inked_N, losses_N[inked_N] + errors)
        losses_BP = torch.zeros_like(masked_BP, dtype=losses_N.dtype)
        return losses_BP.masked_scatter(masked_BP, losses_N).sum(1) / self.num_patches

    def _head_loss(self, z_ND: Tensor, null_ND: Callable[[], Tensor], x0_NI: Tensor) -> Tensor:
        """(N,), mean over ``num_draws`` times and noises per patch.

        ``null_ND`` makes the states without a class.
        """
        num_draws = self.config.num_draws

        def head(x_t: Tensor, t: Tensor, z_ND: Tensor) -> Tensor:
            x_NKI, t_NK = x_t.unflatten(0, (-1, num_draws)), t.unflatten(0, (-1, num_draws))
            return self.head(x_NKI, t_NK, self.head.modulation(z_ND)).flatten(0, 1)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            own = head(x_t, t, z_ND)
            return self.fitted(own, lambda: head(x_t, t, null_ND()))

        losses = self.diffusion.loss(denoise, x0_NI.repeat_interleave(num_draws, 0))
        return losses.unflatten(0, (-1, num_draws)).mean(1)

    def _states(
        self, patches_BPI: Tensor, order_BL: Tensor, known_BL: Tensor, cond: Tensor
    ) -> Tensor:
        """States (B, L, D) of the patches in ``order``; of all others nothing is known.

        With guidance cond is (2B,), and the states are (2B, L, D).
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
        # All attend to known tokens; to an unknown one only itself does.
        itself = torch.eye(order_BL.shape[1], dtype=torch.bool, device=order_BL.device)
        mask_BLL = (known_BL[:, None] | itself).repeat(num_readings, 1, 1)
        at_BL = order_BL.repeat(num_readings, 1)
        return self.transformer(x_BLD, at=at_BL, mask=mask_BLL[:, None])

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """One canvas per step. Patches that are kept whole are known from the start.

        A patch that is kept in part is drawn with its kept pixels fixed at every level of noise.
        Guidance rises over the steps, from near 1 to its full scale at the last.
        """
        num_steps, size = how.num_steps or self.config.num_steps, self.config.patch_size
        shape = (len(noise), *self.image_shape)
        patches_BPI = cut(torch.full(shape, self.blank, device=self.device), size)
        fixed_BPI = torch.zeros_like(patches_BPI, dtype=torch.bool)
        if keep is not None:
            fixed_BPI = cut(keep.mask.expand(shape).float(), size) > 0
            patches_BPI = torch.where(fixed_BPI, cut(to_signed(keep.images), size), patches_BPI)
        whole_BP = fixed_BPI.all(-1)
        # Known patches come first in the order, the others at random.
        rank_BP = torch.where(whole_BP, -1.0, noise.uniform(self.num_patches))
        order_BP = rank_BP.argsort(dim=1, stable=True)
        uniform_BP = noise.uniform(self.num_patches)
        x_1_BPI = noise.normal(*patches_BPI.shape[1:])
        counts = known_counts(whole_BP, num_steps)
        for step, (first_B, last_B) in enumerate(pairwise(counts)):
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
                inked_N |= (patches_BPI[chosen_N] != self.blank).any(-1)  # kept ink
                chosen_N = chosen_N[0][inked_N], chosen_N[1][inked_N]
                z_GND = z_GND[:, inked_N]
            with fast_autocast(self.device):
                modulation = self.head.modulation(z_GND.flatten(0, 1))
            *_, drawn_NI = sample(
                self.diffusion,
                partial(self._denoise, modulation, scale),
                x_1_BPI[chosen_N],
                self.config.head_steps,
                how.sampler or self.config.sampler,
                partial(self._normal, noise, chosen_N),
                None if keep is None else (patches_BPI[chosen_N], fixed_BPI[chosen_N]),
                temperature=how.temperature,
            )
            # Rounded, as the known patches of training are.
            patches_BPI[chosen_N] = to_signed(to_uint8(drawn_NI))
            yield to_uint8(join(patches_BPI, size))

    def _normal(self, noise: Noise, chosen_N: tuple[Tensor, Tensor]) -> Tensor:
        # Drawn for all: an image's next numbers must not depend on how many were chosen.
        return noise.normal(self.num_patches, self.config.num_patch_pixels)[chosen_N]

    def _denoise(self, modulation: Tensor, scale: float, x_t: Tensor, t: Tensor) -> Tensor:
        """The head, guided: noisy patches (N, I) at time t to its prediction."""
        x_t = x_t.repeat(len(modulation) // max(len(x_t), 1), 1)
        with fast_autocast(self.device):
            predicted = self.head(x_t[:, None], t, modulation)[:, 0]
        return guide(predicted.float(), scale)
