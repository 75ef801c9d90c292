"""Configs that all families start from: the data set, then the transformer's sizes."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, ClassVar

from mnist_transformer.data.spec import DataSpec
from mnist_transformer.networks.diffusion import Diffusion
from mnist_transformer.networks.transformer import Transformer
from mnist_transformer.options import Sampling
from mnist_transformer.utils.checks import check_multiple


@dataclass(frozen=True)
class ModelConfig:
    """A family's config starts with the data set, which gives shape, levels and classes.

    A whole number is 1 or more. A field's metadata may name other bounds, ``least`` and ``most``.
    """

    real_valued: ClassVar[bool] = False  # pixels are real numbers, stored as 256 levels

    data: DataSpec

    def __post_init__(self) -> None:
        for f in fields(self):
            least = f.metadata.get("least", 1 if f.type is int else -inf)
            value, most = getattr(self, f.name), f.metadata.get("most", inf)
            if isinstance(value, int | float) and (value < least or value > most):
                expected = f"{least} to {most}" if most < inf else f"{least} or more"
                raise ValueError(f"{f.name} is {value}, expected {expected}")
        if self.real_valued and self.data.num_levels != 256:
            raise ValueError(f"num_levels is {self.data.num_levels}, expected 256 for this family")

    def build(self) -> Any:
        """The family's model, with new weights."""
        from mnist_transformer.models import FAMILIES, family_of

        return FAMILIES[family_of(self)][1](self)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W); an adapter that reads states has another shape."""
        return self.data.shape

    @property
    def channels(self) -> int:
        return self.data.shape[0]

    @property
    def image_size(self) -> int:
        """Height and width, for a family whose images are square."""
        _, height, width = self.data.shape
        if height != width:
            raise ValueError(f"images are {height}x{width}, expected square ones")
        return height


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """A config with a transformer in it; its sizes as in ``Transformer``.

    Args:
        positions: a name of ``positions.POSITIONS``. RoPE needs dim / num_heads to be a multiple
            of 2, axial RoPE of 4.
    """

    dim: int = 192
    depth: int = 4
    num_heads: int = 4
    mlp_dim: int = 768
    positions: str = "learned"
    dropout: float = 0.0

    def transformer(self, num_tokens: int, grid_width: int, **how: Any) -> Transformer:
        """A transformer of these sizes; ``how``: whether it is ``causal``, and its ``cond_dim``."""
        own = fields(TransformerConfig)[1:]  # without data
        sizes = {size.name: getattr(self, size.name) for size in own}
        return Transformer(num_tokens=num_tokens, grid_width=grid_width, **sizes, **how)


@dataclass(frozen=True)
class BackboneConfig(TransformerConfig):
    """A transformer that is conditioned on classes.

    Args:
        class_drop: share of training images that are shown without their class.
        built_in_guidance: the guidance that the model learns to draw with, see
            ``guidance_free``; 1 learns the images as they are.
    """

    class_drop: float = 0.1
    built_in_guidance: float = field(default=1.0, metadata={"least": 1})


@dataclass(frozen=True)
class DiffusionConfig(BackboneConfig):
    """A config of diffusion over patches; sampler and num_steps are defaults for drawing."""

    real_valued = True

    patch_size: int = 4
    schedule: str = "flow"
    prediction: str = "x"
    loss_space: str = "v"
    time_mean: float | None = 0.0
    time_sd: float = 1.0
    uniform_share: float = 0.0
    sampler: str = "euler"
    num_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("image_size", self.image_size, self.patch_size, "patch_size ")
        Sampling(sampler=self.sampler, num_steps=self.num_steps)  # raises if these are invalid
        _ = self.diffusion

    @property
    def grid(self) -> int:
        """Patches per row and per column."""
        return self.image_size // self.patch_size

    @property
    def num_patch_pixels(self) -> int:
        """C * patch_size^2."""
        return self.channels * self.patch_size**2

    @property
    def diffusion(self) -> Diffusion:
        times = self.time_mean, self.time_sd, self.uniform_share
        return Diffusion(self.schedule, self.prediction, self.loss_space, *times)
