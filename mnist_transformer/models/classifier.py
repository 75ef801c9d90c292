"""A small convolutional classifier: the judge of drawn images.

Its predictions give the class agreement of a generative model; its penultimate activations are
the feature space of ``fd_cnn``, precision and recall. Trained with small random affine distortions,
as in Simard et al., "Best practices for convolutional neural networks applied to visual document
analysis" (ICDAR 2003).

Shapes: B images, C channels, H x W pixels, F features, K classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import Judge, in_batches
from mnist_transformer.models.config import ModelConfig


@dataclass(frozen=True)
class ClassifierConfig(ModelConfig):
    """Width of the network and strength of its training distortions.

    Args:
        width: channels of the first stage; there are 4 * width features, 8 * width if residual.
        max_degrees, max_scale, max_shear, max_shift: largest rotation, relative change of
            size, shear and shift (in pixels) of a training image, drawn uniformly.
        mirror: whether images are mirrored left to right half of the time. Shifts are then whole
            pixels, which leaves images sharp, and borders are reflected.
        residual: whether to use the larger, residual network, for data harder than digits.
    """

    real_valued = True

    width: int = 24
    max_degrees: float = 12.0
    max_scale: float = 0.12
    max_shear: float = 0.15
    max_shift: float = 2.0
    label_smoothing: float = 0.05
    mirror: bool = False
    residual: bool = False


def random_affine(images: Tensor, config: ClassifierConfig) -> Tensor:
    """Distort each float image (B, C, H, W) by its own affine map."""
    num_images = len(images)

    def uniform(largest: float, *shape: int) -> Tensor:
        return (torch.rand(num_images, *shape, device=images.device) * 2 - 1) * largest

    angle = uniform(math.radians(config.max_degrees))
    size = 1 + uniform(config.max_scale, 2)
    slant = torch.eye(2, device=images.device).repeat(num_images, 1, 1)
    slant[:, 0, 1] = uniform(config.max_shear)
    # affine_grid measures shifts in half images.
    shift = uniform(2 * config.max_shift / config.image_size, 2)
    if config.mirror:
        slant[:, 0, 0] = uniform(1.0).sign()
        shift = (shift * config.image_size / 2).round() * 2 / config.image_size
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([cos, -sin, sin, cos], dim=-1).view(num_images, 2, 2)
    theta = torch.cat([rotation @ slant * size.unsqueeze(1), shift.unsqueeze(-1)], dim=-1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    outside = "reflection" if config.mirror else "zeros"
    return F.grid_sample(images, grid, padding_mode=outside, align_corners=False)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Sequential):
    """Adds the output of its layers to their input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Classifier(Judge):
    """Stages of convolutions at falling resolutions, then the mean over positions.

    The residual network has the stages of ResNet-9 (David Page, "How to train your ResNet", 2018).
    """

    config: ClassifierConfig
    adamw_modules = ("output",)  # the kernels too, as Muon takes only linear layers

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        if config.image_size < 8:
            raise ValueError(f"image_size is {config.image_size}, expected 8 or more")
        width = config.width
        if config.residual:
            self.stages = nn.Sequential(
                _conv(config.channels, width, 3),
                _conv(width, 2 * width, 3),
                nn.MaxPool2d(2),
                Residual(*(_conv(2 * width, 2 * width, 3) for _ in range(2))),
                _conv(2 * width, 4 * width, 3),
                nn.MaxPool2d(2),
                _conv(4 * width, 8 * width, 3),
                nn.MaxPool2d(2),
                Residual(*(_conv(8 * width, 8 * width, 3) for _ in range(2))),
            )
        else:
            self.stages = nn.Sequential(
                _conv(config.channels, width, 5, stride=2),
                _conv(width, 2 * width, 3),
                nn.MaxPool2d(2),
                _conv(2 * width, 4 * width, 3),
                _conv(4 * width, 4 * width, 3),
            )
        self.output = nn.Linear((8 if config.residual else 4) * width, config.data.num_classes)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Cross-entropy in nats, float32 (B,); training distorts images and smooths labels."""
        scaled, smoothing = images.float() / 255, 0.0
        if self.training:
            scaled = random_affine(scaled, self.config)
            smoothing = self.config.label_smoothing
        logits = self.output(self._features(scaled)).float()
        return F.cross_entropy(logits, cond, label_smoothing=smoothing, reduction="none")

    def figures(self, images: Tensor, cond: Tensor) -> dict[str, float]:
        """The share of images that are classified correctly."""
        right_B = in_batches(self, self.logits, images).argmax(-1) == cond.cpu()
        return {"accuracy": right_B.double().mean().item()}

    def classify(self, features: Tensor) -> Tensor:
        return self.output(features)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate activations (B, F), 0 or more."""
        return self._features(images.float() / 255)

    def _features(self, scaled: Tensor) -> Tensor:
        if self.config.residual:  # large convolutions are fastest in this layout
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        return self.stages(scaled).mean((2, 3))
