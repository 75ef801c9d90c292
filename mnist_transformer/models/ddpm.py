"""Diffusion over pixels: a transformer removes noise from all patches at once, step by step.

    x_t = alpha_t x0 + sigma_t noise;    loss = |error of the prediction|^2 at a random t

(DDPM, arXiv 2006.11239; its straight-line form, rectified flow, arXiv 2209.03003.) The noisy
image is cut into P = H*W/s^2 patches, each a token. Every token attends to every other. The class
and the noise level set scale, shift and gate of every branch (DiT, arXiv 2212.09748). By default
the network predicts the clean patch, and the loss is on the velocity (arXiv 2511.13720): clean
patches lie near a low-dimensional manifold of pixel space, whereas noise fills all of it.

Shapes: B images, P patches, I = C*s*s pixels of a patch, D dim, F features of a time.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from mnist_transformer.models.config import DiffusionConfig
from mnist_transformer.models.guided import GuidedModel
from mnist_transformer.networks.conditioning import ClassEmbedding, guide, with_null
from mnist_transformer.networks.diffusion import (
    NUM_LEVELS,
    Denoise,
    time_features,
    to_signed,
    to_uint8,
)
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.patches import cut, join
from mnist_transformer.networks.solvers import sample
from mnist_transformer.networks.transformer import zeroed
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.utils.devices import fast_autocast

NUM_TIME_FEATURES = 64
NUM_RESAMPLES = 5  # passes of each step around kept pixels; RePaint's own figure is 10


@dataclass(frozen=True)
class DDPMConfig(DiffusionConfig):
    """Sizes of a diffusion model; ``bound_samples``: terms of the bound per image, of 999."""

    depth: int = 6
    time_mean: float | None = 0.8
    time_sd: float = 0.8
    uniform_share: float = 0.2
    bound_samples: int = 8


class Denoiser(GuidedModel):
    """The network, which flash.py has too."""

    max_steps = NUM_LEVELS
    adamw_modules = ("embed", "time", "output")

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self.diffusion = config.diffusion
        self.embed = nn.Linear(config.num_patch_pixels, config.dim)
        # As large as the time's features beside it: the norms' modulation is its only way in.
        self.classes = ClassEmbedding(self.num_classes, config.dim, config.class_drop, std=0.5)
        self.time = nn.Sequential(
            nn.Linear(NUM_TIME_FEATURES, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.transformer = config.transformer(
            config.grid**2, config.grid, causal=False, cond_dim=config.dim
        )
        self.output = zeroed(nn.Linear(config.dim, config.num_patch_pixels))

    def denoise(self, class_BD: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Noisy images (B, C, H, W) at times t, (B,) or (1,), to the network's prediction."""
        x_BPD = self.embed(cut(x_t, self.config.patch_size))
        time_BD = self.time(time_features(t, NUM_TIME_FEATURES))
        x_BPI = self.output(self.transformer(x_BPD, cond=class_BD + time_BD)).float()
        return join(x_BPI, self.config.patch_size)

    def guided(self, cond: Tensor, guidance: float, x_t: Tensor, t: Tensor) -> Tensor:
        """``denoise`` given classes (B,), with guidance."""
        class_GD = self.classes(with_null(cond, self.num_classes, guidance))
        x_t = x_t.repeat(len(class_GD) // max(len(x_t), 1), 1, 1, 1)
        return guide(self.denoise(class_GD, x_t, t), guidance)


class DDPM(Denoiser):
    """See the module's docstring. Images uint8 (B, C, H, W)."""

    config: DDPMConfig
    likelihood = "bound"
    honours = frozenset({"guidance", "guidance_interval", "num_steps", "sampler"})

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Squared error summed over the pixels (B,)."""
        x0 = to_signed(images)
        return self.diffusion.loss(self._fitted(cond), x0) * x0[0].numel()

    def nats(self, images: Tensor, cond: Tensor, fitted: bool = False) -> Tensor:
        """An upper bound in nats (B,), estimated from ``bound_samples`` of its terms.

        The estimate's random numbers follow from the image, so an image always gets one figure.
        """
        denoise = self._fitted(cond) if fitted else partial(self.denoise, self.classes(cond))
        noise = Noise([zlib.crc32(x.numpy().tobytes()) for x in images.cpu()], self.device)
        return self.diffusion.bound(denoise, to_signed(images), noise, self.config.bound_samples)

    def _fitted(self, cond: Tensor) -> Denoise:
        """The denoiser that is fitted to the images."""
        class_BD = self.classes(cond)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            own = self.denoise(class_BD, x_t, t)
            return self.fitted(own, lambda: self.guided(self.without_class(cond), 1, x_t, t))

        return denoise

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """One canvas per step. Around kept pixels each step is repeated (RePaint)."""
        low, high = how.guidance_interval

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            guidance = how.guidance if low < t.item() <= high else 1.0
            with fast_autocast(self.device):  # as in training
                return self.guided(cond, guidance, x_t, t)

        normal = partial(noise.normal, *self.image_shape)
        kept = None if keep is None else (to_signed(keep.images), keep.mask)
        steps, sampler = how.num_steps or self.config.num_steps, how.sampler or self.config.sampler
        options = normal(), steps, sampler, normal, kept, NUM_RESAMPLES
        yield from map(to_uint8, sample(self.diffusion, denoise, *options))
