"""Patch by patch, value by value inside a patch: exact likelihood, one token per patch with ink.

    p(image | class) = prod_t p(blank_t | patches < t) * prod_i p(x_ti | x_t<i, patches < t)

Patches that are all background are blank; only the others become tokens of a causal transformer,
behind a start token. A patch's token carries what was drawn around the patch, not the patch
itself; every token carries the class. From the last state and what was drawn nearby, a *gate*
predicts for each further patch whether it is blank. If not, the *value head* draws its C*s*s
values one after another. A patch with ink costs one transformer step, a blank one none. Without a
background the gate is left out.

Shapes: B batch, M tokens, D dim, G passes of a drawing (with guidance: class and null class).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from mnist_transformer.models.config import BackboneConfig
from mnist_transformer.models.guided import GuidedModel
from mnist_transformer.models.patch import draw
from mnist_transformer.models.patch.decoder import Packed, PatchDecoder
from mnist_transformer.networks.conditioning import ClassEmbedding
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.entropy import Coder
from mnist_transformer.networks.neighbourhood import Neighbourhood
from mnist_transformer.networks.particles import Particles
from mnist_transformer.networks.transformer import KVCache, Transformer
from mnist_transformer.options import PLAIN, Keep, Sampling
from mnist_transformer.utils.checks import check_multiple


@dataclass(frozen=True)
class PatchConfig(BackboneConfig):
    """Sizes of a patch model. Where the data set has a background, patches may be blank.

    Args:
        head_width, head_depth, head_mlp_dim: the value head's residual MLPs.
        margin: how far, in pixels, a patch and a value see around themselves directly.
        num_logistics: components of the mixture that models a value, for data without a
            background; by default each level has a logit.
    """

    patch_size: int = 4
    gate_width: int = 96
    head_width: int = 96
    head_depth: int = 3
    head_mlp_dim: int = 192
    margin: int = field(default=4, metadata={"most": 16})
    num_logistics: int | None = field(default=None, metadata={"least": 1, "most": 64})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (num := self.num_logistics) and self.data.background is not None:
            raise ValueError(f"num_logistics is {num}, expected None for data with a background")
        for size in self.image_shape[1:]:
            check_multiple("image_size", size, self.patch_size, "patch_size ")


class Patch(GuidedModel):
    """See the module's docstring. Images uint8 (B, C, H, W) with values below ``num_levels``."""

    likelihood = "exact"
    honours = frozenset({"temperature", "top_k", "top_p", "guidance", "num_particles"})
    adamw_modules: ClassVar[tuple[str, ...]] = ("decoder.gate.output", "decoder.head.output")

    def __init__(self, config: PatchConfig, num_text_tokens: int = 0) -> None:
        """``num_text_tokens``: positions for a text before an image."""
        super().__init__(config)
        around = Neighbourhood(config.data, config.patch_size, config.margin)
        head = config.num_logistics or 0, config.head_width, config.head_depth, config.head_mlp_dim
        self.decoder = PatchDecoder(around, config.dim, config.gate_width, *head)
        self.classes = ClassEmbedding(self.num_classes, config.dim, config.class_drop)
        num_tokens = around.num_patches + 1 + num_text_tokens
        self.transformer = config.transformer(num_tokens, around.grid[1])

    def logits(self, packed: Packed, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Those of ``PatchDecoder.logits``, given the conditions of the packed images."""
        return self.decoder.logits(packed, self.states(packed, cond))

    def states(self, packed: Packed, cond: Tensor) -> Tensor:
        """The transformer's states (M, D) of all tokens."""
        if self.decoder.gate is None:  # all images have a token per patch
            x_BTD = packed.x_MD.unflatten(0, (len(cond), -1)) + self.embed(cond)[:, None]
            return self.transformer(x_BTD, at=packed.at_M[None, : x_BTD.shape[1]]).flatten(0, 1)
        x_MD = packed.x_MD + self.embed(cond).repeat_interleave(packed.length_B, 0)
        return self.transformer.side_by_side(x_MD, packed.at_M, packed.length_B)

    def compile(self, **how: object) -> None:
        """With blank patches part by part, because batches differ in their number of tokens."""
        if self.decoder.gate is None:
            return super().compile(**how)
        for part in (self.decoder.gate, self.decoder.head, *self.transformer.blocks):
            part.compile(dynamic=True, **how)

    def embed(self, cond: Tensor) -> Tensor:
        """The vector (B, D) added to every token of an image; training drops some classes."""
        return self.classes(cond)

    def read_text(self, cond: Tensor, cache: KVCache) -> Tensor:
        """Put the text before each image into the cache: bool (B, T), true where text is."""
        return cond.new_ones(len(cond), 0, dtype=torch.bool)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        packed = self.decoder.lay_out(images)
        return self.fit(packed, self.states(packed, cond), cond)

    def fit(self, packed: Packed, state_MD: Tensor, cond: Tensor) -> Tensor:
        """Nats (B,) of the fitted logits."""
        gate, head = self.decoder.logits(packed, state_MD)
        null = cache(lambda: self.logits(packed, self.without_class(cond)))
        fitted = self.fitted(gate, lambda: null()[0]), self.fitted(head, lambda: null()[1])
        return self.decoder.nats(packed, *fitted).flatten(1).sum(-1)

    def pixel_nats(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W), summed over channels, by the model that draws."""
        packed = self.decoder.lay_out(images)
        return self.decoder.nats(packed, *self.logits(packed, cond))

    def nats(self, images: Tensor, cond: Tensor, fitted: bool = False) -> Tensor:
        return self.loss(images, cond) if fitted else self.pixel_nats(images, cond).sum((1, 2))

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Callable[[], Tensor]]:
        """A blank canvas, then one per step: each image draws its next patch with ink."""
        around, num_particles = self.decoder.around, 1 if keep is None else how.num_particles
        passes = [cond] if how.guidance == 1 else [cond, self.without_class(cond)]
        cond_RG = torch.stack(passes, 1).repeat_interleave(num_particles, 0)
        uniform = noise.uniform(num_particles, around.num_patches, 1 + around.num_own)
        parts = *self.begin(cond_RG), uniform.flatten(0, 1), how
        if keep is None:
            yield from draw.Drawing(*parts).steps()
        else:
            kept = torch.where(keep.mask, keep.images.long(), draw.FREE)
            kept_RPU = draw.symbols_of(around, kept).repeat_interleave(num_particles, 0)
            particles = Particles(noise, num_particles, around.num_patches + 1)
            yield from draw.DrawingAround(*parts, kept_RPU, particles).steps()

    def code(self, coder: Coder, cond: Tensor, source: Sequence[Tensor]) -> Tensor:
        images = source[0] if source else torch.zeros(len(cond), *self.image_shape)
        symbols = draw.symbols_of(self.decoder.around, images)
        drawing = draw.CodedDrawing(*self.begin(cond[:, None]), symbols, PLAIN, coder)
        *_, canvas = drawing.steps()
        return canvas()

    def begin(self, cond_RG: Tensor) -> tuple[PatchDecoder, Transformer, KVCache, Tensor, Tensor]:
        """The first arguments of a ``Drawing`` of rows and passes under these conditions."""
        cond_X = cond_RG.flatten(0, 1)
        cache = KVCache(self.transformer, len(cond_X), device=self.device)
        text, classes = self.read_text(cond_X, cache), self.embed(cond_X)
        rows = (x.unflatten(0, cond_RG.shape[:2]) for x in (text, classes))
        return self.decoder, self.transformer, cache, *rows
