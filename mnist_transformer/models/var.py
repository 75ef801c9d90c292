"""A transformer over the codes of a VQ-VAE: scale by scale (VAR), or one by one in raster order.

    p(codes | class) = prod_k p(r_k | r_1 .. r_{k-1}, class),   r_k: all codes of scale k at once

Next-scale prediction, arXiv 2404.02905: the token of a cell of scale k carries the total of the
coarser scales at that cell. It attends to all scales up to its own and predicts a softmax over the
codes of its scale. So a scale costs one step, and its codes are drawn independently. With
``correction`` training puts random codes in the place of some, and the codes after them learn to
mend them (Infinity, arXiv 2412.04431). Raster order is the classic prior of the VQ-VAE (arXiv
1711.00937, section 3.3, with a transformer for its PixelCNN): each code of the one scale is a step,
and its token carries the code before it.

The class enters through adaptive norms. The frozen tokenizer is part of the model. It has no
likelihood of pixels: decoding maps many images to one.

Shapes: B batch, T tokens, S tokens of a step, G cells of the finest scale, C code_dim, D dim, V
codebook_size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import Model
from mnist_transformer.models.config import BackboneConfig
from mnist_transformer.models.guided import GuidedModel
from mnist_transformer.models.vqvae import STRIDE, VQVAE, VQVAEConfig
from mnist_transformer.networks.conditioning import ClassEmbedding, guide, ramp, with_null
from mnist_transformer.networks.drawing import Noise, draw_categorical
from mnist_transformer.networks.transformer import KVCache
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.utils.checks import check_choice, check_share

ORDERS = ("scales", "raster")


@dataclass(frozen=True)
class VarConfig(BackboneConfig):
    """Sizes of a model over codes; order "raster", one step per code, wants one scale.

    Args:
        correction: largest share of an image's codes that training replaces by random ones.
    """

    tokenizer: VQVAEConfig = field(kw_only=True)
    order: str = "scales"
    mlp_dim: int = 576
    correction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("order", self.order, ORDERS)
        check_share("correction", self.correction)
        if self.order == "raster" and len(self.tokenizer.scales) > 1:
            raise ValueError(
                f"order is 'raster' and scales are {self.tokenizer.scales}, expected one scale"
            )


class Var(GuidedModel):
    """See the module's docstring. Images uint8 (B, C, H, W)."""

    config: VarConfig
    honours = frozenset({"temperature", "top_k", "top_p", "guidance"})
    adamw_modules = ("embed", "outputs")

    def __init__(self, config: VarConfig) -> None:
        super().__init__(config)
        self.tokenizer: VQVAE = config.tokenizer.build().requires_grad_(False)
        scales, num_tokens = config.tokenizer.scales, config.tokenizer.num_tokens
        self.raster = config.order == "raster"
        sizes = [1] * num_tokens if self.raster else [scale * scale for scale in scales]
        self.spans = [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]
        step_T = torch.tensor([step for step, size in enumerate(sizes) for _ in range(size)])
        self.mask_TT = nn.Buffer(step_T[:, None] >= step_T, persistent=False)
        self.embed = nn.Linear(config.tokenizer.code_dim, config.dim)
        # Large, since the norms' modulation is the class's only way in.
        self.classes = ClassEmbedding(self.num_classes, config.dim, config.class_drop, std=1.0)
        self.transformer = config.transformer(
            num_tokens, config.tokenizer.grid, causal=False, cond_dim=config.dim
        )
        # A scale's codes are its own, and so is the map to their logits.
        outputs = [nn.Linear(config.dim, config.tokenizer.codebook_size) for _ in scales]
        for output in outputs:
            nn.init.zeros_(output.weight)
        self.outputs = nn.ModuleList(outputs)

    def set_tokenizer(self, tokenizer: Model) -> None:
        """Take over a tokenizer's weights; ValueError if it is not the one expected."""
        if not isinstance(tokenizer, VQVAE):
            raise ValueError(f"the tokenizer is a {type(tokenizer).__name__}, expected a VQVAE")
        for name, got in vars(tokenizer.config).items():
            if got != (ours := getattr(self.config.tokenizer, name)):
                raise ValueError(f"the tokenizer has {name} {got}, the transformer expects {ours}")
        self.tokenizer.load_state_dict(tokenizer.state_dict())

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Cross-entropy of the images' codes in nats per code, float32 (B,)."""
        # Encoding is cheap beside the transformer; in float32 an image's codes are the same
        # wherever it is trained.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            wrong = self.config.correction if self.training else 0.0
            features_BGC = self.tokenizer.features(images)
            codes_BT, totals = self.tokenizer.quantize(features_BGC, wrong=wrong)
            x_BTC = self._inputs(totals)
        own = self._logits(x_BTC, cond)
        fitted = self.fitted(own, lambda: self._logits(x_BTC, self.without_class(cond)))
        return F.cross_entropy(fitted.float().mT, codes_BT, reduction="none").mean(1)

    def _logits(self, x_BTC: Tensor, cond: Tensor) -> Tensor:
        """Logits (B, T, V) of all codes, from their tokens' inputs."""
        cond_BD = self.classes(cond)
        states_BTD = self.transformer(self.embed(x_BTC), mask=self.mask_TT, cond=cond_BD)
        scales = zip(self.outputs, self.tokenizer.by_scale(states_BTD), strict=True)
        return torch.cat([output(states_BSD) for output, states_BSD in scales], dim=1)

    def _inputs(self, totals: list[Tensor]) -> Tensor:
        """Inputs (B, T, C) of the tokens, from earlier codes only."""
        if self.raster:
            return F.pad(totals[-1][:, :-1], (0, 0, 1, 0))
        before = enumerate([torch.zeros_like(totals[0]), *totals[:-1]])
        return torch.cat([self.tokenizer.pool(total, level) for level, total in before], dim=1)

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """One canvas per scale, each sharper; in raster order one per row of codes.

        With ``keep``, a cell whose pixels are all kept takes at every scale the code nearest to
        the kept image's features there, less the codes drawn so far. A coarse code that covers
        part of the hole is drawn freely; finer ones correct it where pixels are kept.
        """
        uniform_BT = noise.uniform(self.config.tokenizer.num_tokens)
        cond_ND = self.classes(with_null(cond, self.classes.null_class, how.guidance))
        cache = KVCache(self.transformer, len(cond_ND), device=self.device)
        total_BGC = self._blank().repeat(len(noise), 1, 1)
        kept = None if keep is None else self._kept(keep)
        x_BSC = torch.zeros_like(total_BGC[:, self.spans[0]])
        for step, span in enumerate(self.spans):
            level, uniform_BS = 0 if self.raster else step, uniform_BT[:, span]
            # Guidance grows over the scales as in VAR, but not from 0: the first sets the class.
            scale = how.guidance if self.raster else ramp(how.guidance, step, len(self.spans))
            if not self.raster:
                x_BSC = self.tokenizer.pool(total_BGC, level)
            embedded_NSD = self.embed(x_BSC).repeat(len(cond_ND) // len(noise), 1, 1)
            states_NSD = self.transformer(embedded_NSD, cache, cond=cond_ND)
            logits = guide(self.outputs[level](states_NSD), scale)
            logits_NV = logits[: len(noise)].flatten(0, 1)
            ids_BS = draw_categorical(logits_NV, uniform_BS.flatten(), how).view_as(uniform_BS)
            if kept is not None:
                ids_BS = self._hold(ids_BS, kept, total_BGC, step)
            if self.raster:
                x_BSC = self.tokenizer.codebook(0).codes[ids_BS]
                total_BGC[:, span] = x_BSC
                if span.stop % self.config.tokenizer.grid:
                    continue
            else:
                total_BGC = self.tokenizer.add(total_BGC, level, ids_BS)
            yield self.tokenizer.render(total_BGC)

    def _blank(self) -> Tensor:
        """A drawing's first total (1, G, C): zero; in raster order codes of background."""
        level = self.config.data.background or 0
        blank = torch.full((1, *self.image_shape), level, dtype=torch.uint8, device=self.device)
        total_BGC = self.tokenizer.totals(self.tokenizer.encode(blank))[-1]
        return total_BGC if self.raster else torch.zeros_like(total_BGC)

    def _kept(self, keep: Keep) -> tuple[Tensor, Tensor]:
        """Features (B, G, C), of black in the hole, and 1 in cells kept whole (B, G, 1)."""
        features_BGC = self.tokenizer.features(torch.where(keep.mask, keep.images, 0))
        whole = 1 - F.max_pool2d(1 - keep.mask.float(), STRIDE)
        return features_BGC, whole.flatten(2).mT

    def _hold(
        self, ids_BS: Tensor, kept: tuple[Tensor, Tensor], total_BGC: Tensor, step: int
    ) -> Tensor:
        features_BGC, whole_BG1 = kept
        if self.raster:
            left_BSC, whole_BS1 = (x[:, self.spans[step]] for x in kept)
        else:
            left_BSC = self.tokenizer.pool(features_BGC - total_BGC, step)
            whole_BS1 = self.tokenizer.pool(whole_BG1, step)
        nearest_BS = self.tokenizer.codebook(0 if self.raster else step).nearest(left_BSC)
        return torch.where(whole_BS1.squeeze(-1) > 0.999, nearest_BS, ids_BS)
