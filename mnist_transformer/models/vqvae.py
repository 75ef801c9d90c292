"""VQ-VAE: an image as a few dozen integers, at one scale or, residual upon residual, at several.

    f = encoder(image);  f_0 = 0
    r_k = codebook_k(pool_k(f - f_{k-1}));  f_k = f_{k-1} + up_k(codes_k[r_k])
    image ~ sigmoid(decoder(f_K))

With the one scale 7 this is the VQ-VAE of arXiv 1711.00937, with scales 1, 2, 4, 7 the residual
tokenizer of VAR, arXiv 2404.02905, algorithms 1 and 2: each scale codes the residual of the coarser
ones. Three things differ from VAR's. Every scale has its own codebook: in a shared one the coarse
scales, with their few tokens, would get the fewest codes. Features have unit rms, so that
shrinking them cannot lower the commitment loss. No convolution follows the upsampled codes.

Shapes: B batch, C code_dim, V codebook_size, G cells of the finest scale (7*7 for MNIST), S = s*s
cells of scale s, T the sum of all S: an image's tokens, coarse to fine, each scale in raster order.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import Model, in_batches
from mnist_transformer.models.config import ModelConfig
from mnist_transformer.networks.codebook import Codebook, code_usage
from mnist_transformer.networks.transformer import rms_norm
from mnist_transformer.utils.checks import check_below, check_multiple, check_tensor

STRIDE = 4  # pixels of a finest cell, in height and width


@dataclass(frozen=True)
class VQVAEConfig(ModelConfig):
    """Sizes of a tokenizer.

    Args:
        width: channels at the finest scale; half as many one convolution nearer the pixels.
        depth: residual blocks of the encoder, and as many of the decoder.
        scales: heights of the token maps, ascending; the last is image_size / 4.
        codebook_size: codes V of each scale.
        commitment: weight of the features' distance to their codes.
        truncated_share: share of training images that are decoded without their finest scales, so
            that an unfinished drawing looks like a blurred one.
        decay, dead: see ``Codebook``.
    """

    real_valued = True

    width: int = 96
    depth: int = 2
    scales: tuple[int, ...] = (1, 2, 4, 7)
    codebook_size: int = 512
    code_dim: int = 8
    commitment: float = 0.3
    truncated_share: float = field(default=0.1, metadata={"least": 0, "most": 1})
    decay: float = 0.97
    dead: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scales", tuple(self.scales))
        check_multiple("image_size", self.image_size, STRIDE)
        ascending = self.scales == tuple(sorted({s for s in self.scales if s > 0}))
        if not ascending or self.scales[-1:] != (self.grid,):
            raise ValueError(
                f"scales are {self.scales}, expected ascending ones from 1 or more that end at "
                f"{self.grid}, image_size / {STRIDE}"
            )

    @property
    def grid(self) -> int:
        """Height of the finest scale."""
        return self.image_size // STRIDE

    @property
    def num_tokens(self) -> int:
        return sum(scale * scale for scale in self.scales)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.output = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.output(F.relu(self.mix(F.relu(x))))


class VQVAE(Model):
    """See the module's docstring. A ``Tokenizer``; images are uint8 (B, C, H, W)."""

    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        width, grid = config.width, config.grid
        self.encoder = nn.Sequential(
            nn.Conv2d(config.channels, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            *(ResidualBlock(width) for _ in range(config.depth)),
            nn.ReLU(),
            nn.Conv2d(width, config.code_dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_dim, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(config.depth)),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, config.channels, 4, stride=2, padding=1),
        )
        self.codebooks = nn.ModuleList(
            Codebook(config.codebook_size, config.code_dim, decay=config.decay, dead=config.dead)
            for _ in config.scales
        )
        # Matrices from the finest scale to the others and back: exact, and cheap on any device.
        pools, ups = [], []
        for scale in config.scales:
            fine = torch.eye(grid * grid).view(-1, 1, grid, grid)
            coarse = torch.eye(scale * scale).view(-1, 1, scale, scale)
            pools.append(F.adaptive_avg_pool2d(fine, scale).flatten(1).T)
            ups.append(F.interpolate(coarse, (grid, grid), mode="bilinear").flatten(1))
        self.pool_TG = nn.Buffer(torch.cat(pools), persistent=False)
        self.up_TG = nn.Buffer(torch.cat(ups), persistent=False)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Mean binary cross-entropy of the pixels in [0, 1], plus commitment: float32 (B,).

        With squared errors the decoder leaves noise on the background (docs/var.md).
        In training mode the codebooks take a step too.
        """
        x_BCHW = images.float() / 255
        f_BGC = self._features(x_BCHW)
        _, totals = self.quantize(f_BGC.detach(), learn=self.training)
        totals_KBGC = torch.stack(totals)
        last_B = torch.full((len(images),), len(totals) - 1)
        if self.training:
            coarser = torch.rand(len(images)) < self.config.truncated_share
            last_B = torch.where(coarser, (torch.rand(len(images)) * last_B).long(), last_B)
        # The gradient skips the quantizer (straight through), and every scale's total draws the
        # features towards it, as in VAR.
        shown_BGC = totals_KBGC[last_B.to(f_BGC.device), torch.arange(len(images))]
        through_BGC = f_BGC + (shown_BGC - f_BGC).detach()
        distances_KB = (f_BGC - totals_KBGC).square().mean((2, 3))
        logits_BCHW = self._decoded(through_BGC).float()
        errors_BCHW = F.binary_cross_entropy_with_logits(logits_BCHW, x_BCHW, reduction="none")
        return errors_BCHW.mean((1, 2, 3)) + self.config.commitment * distances_KB.mean(0)

    # --- Tokenizer ---

    def encode(self, images: Tensor) -> Tensor:
        """Codes int64 (B, T), each in [0, V), of uint8 images (B, C, H, W)."""
        return self.quantize(self.features(images))[0]

    def decode(self, codes: Tensor) -> Tensor:
        """Images uint8 (B, C, H, W) of codes (B, T); ValueError if they are invalid."""
        check_tensor("codes", codes, torch.int64, "B", self.config.num_tokens)
        check_below("code", codes, self.config.codebook_size)
        return self.render(self.totals(codes.to(self.device))[-1])

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    def figures(self, images: Tensor, cond: Tensor) -> dict[str, float]:
        """``code_usage`` of every scale over all these images."""
        codes = in_batches(self, self.encode, images).long()
        figures: dict[str, float] = {}
        for scale, ids in zip(self.config.scales, self.by_scale(codes), strict=True):
            usage, perplexity = code_usage(ids, self.config.codebook_size)
            figures |= {f"usage_{scale}x{scale}": usage, f"perplexity_{scale}x{scale}": perplexity}
        return figures

    # --- the parts, for a model over the codes ---

    def by_scale(self, x_BT: Tensor) -> tuple[Tensor, ...]:
        """Views (B, S, ...) of x (B, T, ...), coarse to fine."""
        return x_BT.split([scale * scale for scale in self.config.scales], dim=1)

    def features(self, images: Tensor) -> Tensor:
        """Features that the codes approximate: float32 (B, G, C) of uint8 images (B, C, H, W)."""
        return self._features(self.check_images(images).float() / 255)

    def pool(self, x_BGC: Tensor, level: int) -> Tensor:
        """Means over the cells of a scale: (B, S, C)."""
        return self.by_scale(self.pool_TG[None])[level] @ x_BGC

    def codebook(self, level: int) -> Codebook:
        codebook = self.codebooks[level]
        assert isinstance(codebook, Codebook)
        return codebook

    def add(self, total_BGC: Tensor, level: int, ids_BS: Tensor) -> Tensor:
        """The total of the coarser scales plus this one's codes."""
        codes_BSC = self.codebook(level).codes[ids_BS]
        return total_BGC + self.by_scale(self.up_TG[None])[level].mT @ codes_BSC

    def totals(self, codes_BT: Tensor) -> list[Tensor]:
        """The total (B, G, C) after each scale."""
        shape = len(codes_BT), self.config.grid**2, self.config.code_dim
        totals = [torch.zeros(shape, device=self.device)]
        for level, ids_BS in enumerate(self.by_scale(codes_BT)):
            totals.append(self.add(totals[-1], level, ids_BS))
        return totals[1:]

    def render(self, total_BGC: Tensor) -> Tensor:
        """Images uint8 (B, C, H, W) of a total."""
        pixels = self._decoded(total_BGC).float().sigmoid()
        return (pixels * 255).round().to(torch.uint8)

    @torch.no_grad()
    def quantize(
        self, f_BGC: Tensor, *, learn: bool = False, wrong: float = 0.0
    ) -> tuple[Tensor, list[Tensor]]:
        """Codes (B, T) of features, and the total (B, G, C) after each scale.

        Random codes replace a share of each scale's codes, drawn per image from 0 to ``wrong``.
        The finer scales code the residual that these leave, so they correct the errors.
        """
        codes, totals = [], [torch.zeros_like(f_BGC)]
        with torch.autocast(f_BGC.device.type, enabled=False):  # averages need their digits
            for level in range(len(self.codebooks)):
                left_BSC = self.pool(f_BGC - totals[-1], level)
                if learn:
                    self.codebook(level).learn(left_BSC.flatten(0, 1))
                seen_BS = self.codebook(level).nearest(left_BSC)
                codes.append(seen_BS)
                if wrong:  # drawn on the CPU, as all that is drawn for training is
                    is_wrong_BS = torch.rand(seen_BS.shape) < wrong * torch.rand(len(seen_BS), 1)
                    random_BS = torch.randint(self.config.codebook_size, seen_BS.shape)
                    random_BS = random_BS.to(seen_BS.device)
                    seen_BS = torch.where(is_wrong_BS.to(seen_BS.device), random_BS, seen_BS)
                totals.append(self.add(totals[-1], level, seen_BS))
        return torch.cat(codes, dim=1), totals[1:]

    def _features(self, x_BCHW: Tensor) -> Tensor:
        return rms_norm(self.encoder(x_BCHW).flatten(2).mT)

    def _decoded(self, total_BGC: Tensor) -> Tensor:
        """Logits (B, C, H, W) of the pixels."""
        return self.decoder(total_BGC.mT.unflatten(-1, (self.config.grid, self.config.grid)))
