"""Value by value: exact likelihood with T = H*W*C tokens, as a language model reads a text.

    p(image | class) = prod_t p(x_t | class, x_<t)

The values stand in raster order of their pixels, and within a pixel R before G before B. A causal
transformer reads the class and then the values, each level a token of its own (as in Image GPT,
Chen et al., "Generative pretraining from pixels", ICML 2020, without its palette of 512 colours).
The token at t carries value t - 1, stands at the position of value t, and predicts a softmax over
the levels of value t; token 0 carries the class. Positions form a grid of H rows and W*C columns,
so they encode the channel. Classes and levels have separate vocabularies, so no probability is
lost on drawing a class. No token follows the last value, hence T tokens for T values and a class.

Shapes: B batch, T values, V levels, D dim; in drawing R rows (K particles per image) and X the
cache's batch (2R with guidance, else R).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.config import BackboneConfig
from mnist_transformer.models.guided import GuidedModel
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


class Pixel(GuidedModel):
    """See the module's docstring. Images uint8 (B, C, H, W) with values below ``num_levels``."""

    likelihood = "exact"
    honours = frozenset({"temperature", "top_k", "top_p", "guidance", "num_particles"})
    adamw_modules = ("output",)

    def __init__(self, config: PixelConfig) -> None:
        super().__init__(config)
        channels, height, width = config.image_shape
        self.num_values, self.row_length = channels * height * width, width * channels
        self.classes = ClassEmbedding(self.num_classes, config.dim, config.class_drop)
        self.levels = nn.Embedding(config.data.num_levels, config.dim)
        nn.init.normal_(self.levels.weight, std=0.02)
        self.transformer = config.transformer(self.num_values, self.row_length)
        self.output = nn.Linear(config.dim, config.data.num_levels)
        nn.init.zeros_(self.output.weight)

    def logits(self, values_BT: Tensor, cond_B: Tensor) -> Tensor:
        """Logits (B, T, V) of every value, given the class and earlier values."""
        x_BTD = torch.cat([self.classes(cond_B)[:, None], self.levels(values_BT[:, :-1])], dim=1)
        return self.output(self.transformer(x_BTD))

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        values_BT = _values(images).long()
        own = self.logits(values_BT, cond)
        fitted = self.fitted(own, lambda: self.logits(values_BT, self.without_class(cond)))
        return _nats(fitted, images).flatten(1).sum(-1)

    def nats(self, images: Tensor, cond: Tensor, fitted: bool = False) -> Tensor:
        return self.loss(images, cond) if fitted else self.pixel_nats(images, cond).sum((1, 2))

    def pixel_nats(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W), summed over channels."""
        return _nats(self.logits(_values(images).long(), cond), images)

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """One canvas per row of pixels; K particles per image around kept ones (particles.py)."""
        channels, height, width = self.image_shape
        num_particles = how.num_particles if keep else 1
        uniform_RT = noise.uniform(num_particles, self.num_values).flatten(0, 1)
        particles = Particles(noise, num_particles, height)
        rows_R = torch.arange(len(uniform_RT), device=self.device)
        drawn_RT = torch.zeros(*uniform_RT.shape, dtype=torch.uint8, device=self.device)
        if keep is not None:
            images = _values(keep.images).long()
            masks = _values(keep.mask.expand_as(keep.images))
            kept_RT, mask_RT = (x.repeat_interleave(num_particles, 0) for x in (images, masks))
        cond_R = cond.repeat_interleave(num_particles)
        cond_X = with_null(cond_R, self.classes.null_class, how.guidance)
        num_passes = len(cond_X) // len(rows_R)  # 2 with guidance: class, null class
        cache = KVCache(self.transformer, len(cond_X), device=self.device)
        x_XD = self.classes(cond_X)
        for t in range(self.num_values):
            logits_XV = self.output(self.transformer(x_XD[:, None], cache)[:, 0])
            logits_RV = guide(logits_XV, how.guidance)
            drawn_R = draw_categorical(logits_RV, uniform_RT[:, t], how)
            if keep is not None and mask_RT[:, t].any():
                weight_R = log_prob(logits_RV, kept_RT[:, t], how)
                particles.weigh(rows_R, weight_R.masked_fill(~mask_RT[:, t], 0))
                drawn_R = torch.where(mask_RT[:, t], kept_RT[:, t], drawn_R)
            drawn_RT[:, t] = drawn_R
            if (t + 1) % self.row_length == 0:
                if (parent_R := particles.resample()) is not None:
                    drawn_RT, drawn_R = drawn_RT[parent_R], drawn_R[parent_R]
                    cache.select(torch.cat([parent_R + i * len(rows_R) for i in range(num_passes)]))
                chosen_B = particles.choose() if t + 1 == self.num_values else particles.best()
                canvas = drawn_RT[chosen_B].unflatten(1, (height, width, channels))
                yield canvas.permute(0, 3, 1, 2)
            x_XD = self.levels(drawn_R).repeat(num_passes, 1)

    def code(self, coder: Coder, cond: Tensor, source: Sequence[Tensor]) -> Tensor:
        channels, height, width = self.image_shape
        blank = torch.zeros(len(cond), *self.image_shape, dtype=torch.uint8)
        values_TB = _values(source[0] if source else blank).T.long()
        cache = KVCache(self.transformer, len(cond), device=self.device)
        x_BD = self.classes(cond)
        for t, value_B in enumerate(values_TB):
            logits_BV = self.output(self.transformer(x_BD[:, None], cache)[:, 0])
            values_TB[t] = coder.code(logits_BV, value_B)
            x_BD = self.levels(values_TB[t])
        images = values_TB.T.byte().unflatten(1, (height, width, channels))
        return images.permute(0, 3, 1, 2).contiguous()


def _nats(logits_BTV: Tensor, images: Tensor) -> Tensor:
    """Nats of each pixel (B, H, W), summed over channels."""
    logits_NV, values_N = logits_BTV.float().flatten(0, 1), _values(images).long().flatten()
    nats_N = F.cross_entropy(logits_NV, values_N, reduction="none")
    return nats_N.view(len(images), *images.shape[2:], -1).sum(-1)


def _values(images: Tensor) -> Tensor:
    """The values of images (B, C, H, W) in drawing order (B, T)."""
    return images.permute(0, 2, 3, 1).flatten(1)
