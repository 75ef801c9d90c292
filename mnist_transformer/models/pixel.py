"""Pixel by pixel: exact likelihood with T = H*W tokens, as a language model reads a text.

    p(image | class) = prod_t p(x_t | class, x_<t),   t in raster order

A causal transformer reads the class and then the pixels, each grey level a token of its own
(as in Image GPT, Chen et al., "Generative pretraining from pixels", ICML 2020, without its
palette of 512 colours). The token at t carries pixel t - 1, stands at the position of pixel t,
and predicts a softmax over the grey levels of pixel t; token 0 carries the class. Classes and
levels have separate vocabularies, so no probability is lost on drawing a class. No token follows
the last pixel, hence T tokens for T pixels and a class.

Shapes: B batch, T pixels, V grey levels, D dim; in drawing R rows (K particles an image) and X
the cache's batch (2R with guidance, else R).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.config import BackboneConfig
from mnist_transformer.networks.conditioning import ClassEmbedding, guide, with_null
from mnist_transformer.networks.drawing import Noise, draw_categorical, log_prob
from mnist_transformer.networks.entropy import Coder
from mnist_transformer.networks.particles import Particles
from mnist_transformer.networks.transformer import KVCache
from mnist_transformer.options import Keep, Sampling


@dataclass(frozen=True)
class PixelConfig(BackboneConfig):
    """Sizes of a pixel model; the scheme of positions is the best of docs/positions.md."""

    dim: int = 256
    mlp_dim: int = 1024
    positions: str = "learned_axial_rope"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels != 1:
            raise ValueError(f"channels is {self.channels}, expected 1 for a pixel model")

    def build(self) -> "Pixel":
        return Pixel(self)


class Pixel(GenerativeModel):
    """See the module's docstring. Images uint8 (B, 1, H, W) with values below ``num_levels``."""

    likelihood = "exact"
    loss_sums_dims = True
    honours = frozenset({"temperature", "top_k", "top_p", "guidance", "num_particles"})
    adamw_modules = ("output",)

    def __init__(self, config: PixelConfig) -> None:
        super().__init__(config)
        self.num_pixels = config.image_size**2
        self.classes = ClassEmbedding(config.num_classes, config.dim, config.class_drop)
        self.levels = nn.Embedding(config.num_levels, config.dim)
        nn.init.normal_(self.levels.weight, std=0.02)
        self.transformer = config.transformer(self.num_pixels, config.image_size)
        self.output = nn.Linear(config.dim, config.num_levels)
        nn.init.zeros_(self.output.weight)

    def logits(self, values_BT: Tensor, cond_B: Tensor) -> Tensor:
        """Logits (B, T, V) of every pixel, given the class and earlier pixels."""
        x_BTD = torch.cat([self.classes(cond_B)[:, None], self.levels(values_BT[:, :-1])], dim=1)
        return self.output(self.transformer(x_BTD))

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        return self.pixel_nats(images, cond).flatten(1).sum(-1)

    nats = loss

    def pixel_nats(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W)."""
        values_BT = images.flatten(1).long()
        logits_NV = self.logits(values_BT, cond).float().flatten(0, 1)
        nats_N = F.cross_entropy(logits_NV, values_BT.flatten(), reduction="none")
        return nats_N.view_as(images[:, 0])

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """One canvas per row of pixels; K particles per image around kept ones (particles.py)."""
        width, num_particles = self.config.image_size, how.num_particles if keep else 1
        uniform_RT = noise.uniform(num_particles, self.num_pixels).flatten(0, 1)
        particles = Particles(noise, num_particles, width)
        rows_R = torch.arange(len(uniform_RT), device=self.device)
        pixels_RT = torch.zeros(*uniform_RT.shape, dtype=torch.uint8, device=self.device)
        if keep is not None:
            images, masks = keep.images.flatten(1).long(), keep.mask.flatten(1)
            kept_RT, mask_RT = (x.repeat_interleave(num_particles, 0) for x in (images, masks))
        cond_R = cond.repeat_interleave(num_particles)
        cond_X = with_null(cond_R, self.classes.null_class, how.guidance)
        num_passes = len(cond_X) // len(rows_R)  # 2 with guidance: class, null class
        cache = KVCache(self.transformer, len(cond_X), device=self.device)
        x_XD = self.classes(cond_X)
        for t in range(self.num_pixels):
            logits_XV = self.output(self.transformer(x_XD[:, None], cache)[:, 0])
            logits_RV = guide(logits_XV, how.guidance)
            drawn_R = draw_categorical(logits_RV, uniform_RT[:, t], how)
            if keep is not None and mask_RT[:, t].any():
                weight_R = log_prob(logits_RV, kept_RT[:, t], how)
                particles.weigh(rows_R, weight_R.masked_fill(~mask_RT[:, t], 0))
                drawn_R = torch.where(mask_RT[:, t], kept_RT[:, t], drawn_R)
            pixels_RT[:, t] = drawn_R
            if (t + 1) % width == 0:
                if (parent_R := particles.resample()) is not None:
                    pixels_RT, drawn_R = pixels_RT[parent_R], drawn_R[parent_R]
                    cache.select(torch.cat([parent_R + i * len(rows_R) for i in range(num_passes)]))
                chosen_B = particles.choose() if t + 1 == self.num_pixels else particles.best()
                yield pixels_RT[chosen_B].unflatten(1, self.image_shape)
            x_XD = self.levels(drawn_R).repeat(num_passes, 1)

    def code(self, coder: Coder, cond: Tensor, source: Sequence[Tensor]) -> Tensor:
        blank = torch.zeros(len(cond), *self.image_shape, dtype=torch.uint8)
        values_TB = (source[0] if source else blank).flatten(1).T.long()
        cache = KVCache(self.transformer, len(cond), device=self.device)
        x_BD = self.classes(cond)
        for t, value_B in enumerate(values_TB):
            logits_BV = self.output(self.transformer(x_BD[:, None], cache)[:, 0])
            values_TB[t] = coder.code(logits_BV, value_B)
            x_BD = self.levels(values_TB[t])
        return values_TB.T.byte().reshape_as(blank)
