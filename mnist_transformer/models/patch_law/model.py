"""Patch by patch, pixel by pixel inside a patch: exact likelihood, one token a patch with ink.

    p(image | class) = prod_t p(blank_t | patches < t) * prod_i p(x_ti | x_t<i, patches < t)

Most of MNIST is black: of the P = H*W/s^2 patches only those with ink become tokens, behind a
start token that carries the class alone. A causal transformer runs over them in raster order;
its state for a patch has seen the patches before it only. From the last such state and what was
drawn nearby, a small *gate* says of each further patch whether it is blank (all zeros). If not,
the *pixel head* draws its s*s pixels one after another: pixel i sees the transformer's state,
the pixels already drawn around it (weights shared by all i, masked to the order of drawing as
in MADE, arXiv 1502.03509) and, through a few residual MLPs, becomes a softmax over the grey
levels. Nothing attends inside a patch, so a patch costs one transformer step, and a blank one
none.

Shapes: B batch, P patches, N patches with ink, M tokens of all images (N + B), S slots of a
neighbourhood, I = s*s pixels of a patch, E features of a pixel value, W width of the head, V grey
levels, D dim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.config import ModelConfig
from mnist_transformer.models.patch_law.head import (
    Corner,
    Gate,
    Neighbourhood,
    PixelHead,
    corner_offsets,
    first_ink,
)
from mnist_transformer.models.patch_law.level_law import LevelLaw
from mnist_transformer.models.patch_law.sampler import PatchSampler
from mnist_transformer.networks.conditioning import ClassEmbedding, with_null
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.patches import check_patch_size, join
from mnist_transformer.networks.transformer import KVCache, Transformer
from mnist_transformer.options import Keep, Sampling


@dataclass(frozen=True)
class PatchConfig(ModelConfig):
    """Sizes of a patch model.

    Args:
        dim, depth, num_heads, mlp_dim: the transformer.
        gate_width: the gate's hidden width.
        head_width, head_depth, head_mlp_dim: the pixel head's residual MLPs.
        margin: how many pixels around itself a patch, and a pixel, sees directly.
        class_drop: share of training images that are shown without their class.
        corner: whether a patch is told where it lies, seen from the corner of the ink so far.
        law: whether the pixel head is told which grey levels the way MNIST was scaled allows.
        built_in_guidance: the guidance that it learns to draw with by itself, see ``Patch.loss``;
            1 learns the images as they are.
    """

    patch_size: int = 4
    dim: int = 256
    depth: int = 5
    num_heads: int = 4
    mlp_dim: int = 1024
    positions: str = "learned"
    gate_width: int = 128
    head_width: int = 128
    head_depth: int = 3
    head_mlp_dim: int = 256
    margin: int = 4
    dropout: float = 0.0
    class_drop: float = 0.1
    corner: bool = False
    law: bool = False
    built_in_guidance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels != 1:
            raise ValueError(f"channels is {self.channels}, expected 1 for a patch model")
        if self.margin > 16:
            raise ValueError(f"margin is {self.margin}, expected 1 to 16")
        if self.built_in_guidance < 1:
            raise ValueError(f"built_in_guidance is {self.built_in_guidance}, expected 1 or more")
        check_patch_size(self.image_size, self.patch_size)

    @property
    def num_text_tokens(self) -> int:
        """Places for text before an image."""
        return 0

    def build(self) -> "Patch":
        return Patch(self)


def _palettes(own_NI: Tensor, num_inked_B: Tensor, num_levels: int) -> Tensor:
    """log(1 + how often each grey level was drawn in the image's patches before): (N, V)."""
    counts_NV = torch.zeros(len(own_NI), num_levels, device=own_NI.device)
    counts_NV.scatter_add_(-1, own_NI, torch.ones_like(own_NI, dtype=counts_NV.dtype))
    before_NV = counts_NV.cumsum(0) - counts_NV
    lengths = num_inked_B[num_inked_B > 0]
    others_NV = before_NV[lengths.cumsum(0) - lengths].repeat_interleave(lengths, 0)
    return (before_NV - others_NV).log1p()


def _corners(own_BPI: Tensor, start_P2: Tensor, edge: int) -> Tensor:
    """First row and first column with ink in the patches before: int64 (B, P, 2); edge if none."""
    first_BP2 = first_ink(own_BPI, start_P2, edge)
    return F.pad(first_BP2.cummin(1).values[:, :-1], (0, 0, 1, 0), value=edge)


class Picture(NamedTuple):
    """A batch of images as one flat run of tokens: start, inked patches, start, inked patches ...

    Args:
        values_BPS: int64, the pixels around each patch, then its own.
        inked_BP: bool, the patches with ink; N of them.
        palette_NV: see ``_palettes``.
        offset_N2: int64, see ``corner_offsets``.
        law_NIDV: see ``LevelLaw``; None without it.
        length_B: number of tokens of each image.
        token_BP: the token of patch t, or of the last inked one before it, or the start.
        x_MD, at_M: the tokens without their class, and their positions.
    """

    values_BPS: Tensor
    inked_BP: Tensor
    palette_NV: Tensor
    offset_N2: Tensor
    law_NIDV: Tensor | None
    length_B: Tensor
    token_BP: Tensor
    x_MD: Tensor
    at_M: Tensor


class Patch(GenerativeModel):
    """See the module's docstring. Images uint8 (B, 1, H, W) with values below ``num_levels``."""

    likelihood = "exact"
    loss_sums_dims = True
    honours = frozenset({"temperature", "top_k", "top_p", "guidance", "num_particles"})
    starts_P2: Tensor  # first row and column of each patch
    adamw_modules: ClassVar[tuple[str, ...]] = (
        "gate.output",
        "head.copy",
        "head.trust",
        "head.direction",
        "head.output",
    )

    def __init__(self, config: PatchConfig) -> None:
        super().__init__(config)
        # Evaluation mode measures the model that draws, with the guidance that is built in.
        self.objective_in_eval = config.built_in_guidance == 1
        self.grid = config.image_size // config.patch_size
        self.num_patches = self.grid**2
        starts = torch.arange(0, config.image_size, config.patch_size)
        self.register_buffer("starts_P2", torch.cartesian_prod(starts, starts), persistent=False)
        self.around = Neighbourhood(config)
        num_before = self.around.num_before * self.around.num_features
        num_own = self.around.num_own * self.around.num_features
        self.before = nn.Linear(num_before, config.dim)
        self.previous = nn.Linear(num_own, config.dim, bias=False)
        self.palette = nn.Linear(config.num_levels, config.dim, bias=False)
        self.corner = Corner(config, config.dim) if config.corner else None
        self.classes = ClassEmbedding(config.num_classes, config.dim, config.class_drop)
        self.transformer = Transformer(
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            # Positions: the patches, the start token, and text where there is some.
            num_tokens=self.num_patches + 1 + config.num_text_tokens,
            grid_width=self.grid,
            positions=config.positions,
            dropout=config.dropout,
        )
        self.law = None
        if config.law:
            self.law = LevelLaw(config.image_size, config.patch_size, config.num_levels)
        self.gate = Gate(config, self.num_patches, num_before)
        self.head = PixelHead(config, self.around)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Negative log-likelihood in nats (B,); in training some images lack their class.

        With guidance g built in, what is trained on the images is null + (own - null) / g, the
        null class's logits held fixed: then the model's own ones, with which it draws, become
        null + g * (conditional - null), and drawing needs no second pass for it. Guidance-free
        training (arXiv 2501.15420) with its beta fixed at 1 / g.
        """
        guidance = self.config.built_in_guidance
        if not self.training or guidance == 1:
            return self.pixel_nats(images, cond).flatten(1).sum(-1)
        picture = self.lay_out(images)
        own = self.logits(picture, self.states(picture, self.classes(cond)))
        self.eval()  # no dropout: the images' logits have theirs
        with torch.no_grad():
            null_B = torch.full_like(cond, self.classes.null_class)
            null = self.logits(picture, self.states(picture, self.classes(null_B)))
        self.train()
        gate_BP, level_NIV = (x.lerp(y, 1 / guidance) for x, y in zip(null, own, strict=True))
        return self.nats_of(picture, gate_BP, level_NIV).flatten(1).sum(-1)

    def pixel_nats(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W); a gate's are spread evenly over its patch."""
        picture = self.lay_out(images)
        state_MD = self.states(picture, self.classes(cond))
        return self.nats_of(picture, *self.logits(picture, state_MD))

    def nats(self, images: Tensor, cond: Tensor) -> Tensor:
        return self.pixel_nats(images, cond).flatten(1).sum(-1)

    # --- its parts ---

    def lay_out(self, images: Tensor) -> Picture:
        """Images uint8 (B, 1, H, W) as tokens."""
        values_BPS = self.around.values(self.around.pad(images))
        before_BPS, own_BPI = values_BPS.split([self.around.num_before, self.around.num_own], -1)
        inked_BP = (own_BPI > 0).any(-1)
        patch_N = inked_BP.nonzero()[:, 1]
        corner_BP2 = _corners(own_BPI, self.starts_P2, self.config.image_size)
        offset_N2 = self.offsets(patch_N, corner_BP2[inked_BP])
        num_inked_B = inked_BP.sum(1)
        law_NIDV = None
        if self.law is not None:
            law_NIDV = self.law.before(own_BPI[inked_BP], patch_N, num_inked_B)
        palette_NV = _palettes(own_BPI[inked_BP], num_inked_B, self.config.num_levels)
        length_B = 1 + num_inked_B
        start_B = length_B.cumsum(0) - length_B
        token_BP = start_B[:, None] + inked_BP.cumsum(1)
        token_N = token_BP[inked_BP]
        first_N = (token_BP - start_B[:, None])[inked_BP] == 1
        previous_NI = own_BPI[inked_BP].roll(1, 0)
        previous_NI = previous_NI.masked_fill(first_N[:, None], self.around.outside)
        x_ND = self.tokens(before_BPS[inked_BP], previous_NI, palette_NV, offset_N2)
        x_MD = x_ND.new_zeros(len(x_ND) + len(length_B), x_ND.shape[1]).index_copy(0, token_N, x_ND)
        at_M = torch.full((len(x_MD),), self.num_patches, device=x_MD.device)
        at_M[token_N] = patch_N
        hints = palette_NV, offset_N2, law_NIDV
        return Picture(values_BPS, inked_BP, *hints, length_B, token_BP, x_MD, at_M)

    def states(self, picture: Picture, class_BD: Tensor) -> Tensor:
        """The transformer's states (M, D) of all tokens."""
        x_MD = picture.x_MD + class_BD.repeat_interleave(picture.length_B, 0)
        return self.transformer.side_by_side(x_MD, picture.at_M, picture.length_B)

    def logits(self, picture: Picture, state_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 (B, P) that a patch has ink, and (N, I, V) of the levels in ink."""
        values_BPS, inked_BP = picture.values_BPS, picture.inked_BP
        # Patch t's gate must not see its token: it has ink.
        last_BP = picture.token_BP - inked_BP.long()
        gate_BP = self.gate(
            self.gate.state(state_MD)[last_BP],
            self.around.embed(values_BPS[..., : self.around.num_before]),
            torch.arange(self.num_patches, device=state_MD.device),
        )
        level_NIV = self.head(
            state_MD[picture.token_BP[inked_BP]],
            self.around.embed(values_BPS[inked_BP]),
            picture.palette_NV,
            picture.offset_N2,
            picture.law_NIDV,
        )
        return gate_BP.float(), level_NIV.float()

    def nats_of(self, picture: Picture, gate_BP: Tensor, level_NIV: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W), from ``logits``."""
        inked_BP = picture.inked_BP
        own_BPI = picture.values_BPS[..., self.around.num_before :]
        own_NI = own_BPI[inked_BP]
        nats_BP = F.binary_cross_entropy_with_logits(
            gate_BP, inked_BP.to(gate_BP.dtype), reduction="none"
        )
        # There is ink somewhere: when all pixels but the last are zero, the last one cannot be.
        level_NIV[(own_NI[:, :-1] == 0).all(-1), -1, 0] = float("-inf")
        nats_NI = F.cross_entropy(
            level_NIV.flatten(0, 1), own_NI.flatten(), reduction="none"
        ).view_as(own_NI)
        size = self.config.patch_size
        nats_BPI = (nats_BP / size**2)[..., None].expand_as(own_BPI)
        nats_BPI = nats_BPI.masked_scatter(inked_BP[..., None], nats_BPI[inked_BP] + nats_NI)
        return join(nats_BPI, size).squeeze(1)

    def tokens(
        self, before_NS: Tensor, previous_NI: Tensor, palette_NV: Tensor, offset_N2: Tensor
    ) -> Tensor:
        """Tokens (N, D) of patches with ink, without their class."""
        x_ND = self.before(self.around.embed(before_NS)) + self.palette(palette_NV)
        x_ND = x_ND + self.previous(self.around.embed(previous_NI))
        return x_ND if self.corner is None else x_ND + self.corner(offset_N2)

    def offsets(self, patch_N: Tensor, corner_N2: Tensor) -> Tensor:
        """What ``Corner`` expects, for these patches and the corners of the ink before them."""
        return corner_offsets(self.starts_P2[patch_N], corner_N2, self.config.image_size)

    # --- drawing, see patch_sampler.py ---

    def with_null(self, cond: Tensor, guidance: float) -> Tensor:
        """Conditions (X, ...) to evaluate for ``guide``."""
        return with_null(cond, self.classes.null_class, guidance)

    def class_vectors(self, cond: Tensor) -> Tensor:
        """(X, D), added to every token of an image."""
        return self.classes(cond)

    def read_text(self, cond: Tensor, cache: KVCache) -> Tensor:
        """Put the text before each image into the cache; bool (X, T), true where there is some."""
        return cond.new_ones(len(cond), 0, dtype=torch.bool)

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """A black canvas, then one a step, in which every image draws its next patch with ink.

        Around kept pixels ``num_particles`` compete for each image, see particles.py.
        """
        return PatchSampler(self, cond, noise, how, keep).steps()
