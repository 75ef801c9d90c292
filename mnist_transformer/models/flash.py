"""A digit in one pass of a network, which is distilled from a diffusion model.

    x0 = the end of the teacher's path from x_t, by Euler's steps;    loss = |f(x_t, t) - x0|

The teacher's path from noise to data is a function of the noise and the class. f learns this
function from pairs (arXiv 2101.02388). Each training step draws fresh pairs by eight steps of the
teacher, which draws nearly as well in eight as in fifty. f has the network of ``DDPM``. The loss is
the norm of the error, not its square: where f is unsure, it predicts one image and not a blur.

Drawing from x_1 is one pass. More steps add noise to the image and denoise it again, and kept
pixels are put back each time (arXiv 2303.01469, algorithms 1 and 4). So f also learns from points
x_t between data and noise.

Shapes: B images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from mnist_transformer.models.config import DiffusionConfig
from mnist_transformer.models.ddpm import DDPM, Denoiser
from mnist_transformer.networks.diffusion import to_signed, to_uint8
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.solvers import ddim_step
from mnist_transformer.options import Keep, Sampling

FROM_NOISE = 0.5  # least share of training images at t = 1, where drawing starts
SHARPNESS = 0.03  # root mean square of an error below which it counts by its square


@dataclass(frozen=True)
class FlashConfig(DiffusionConfig):
    """Sizes of a one-step model; ``built_in_guidance`` is that of its teacher.

    Args:
        teacher: a model of diffusion, as ``loading.load`` takes it; training alone needs it.
        num_links: Euler steps of the teacher from noise to data.
    """

    patch_size: int = 7
    depth: int = 8
    num_steps: int = 1
    teacher: str = "mnist-ddpm"
    num_links: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        found = self.schedule, self.prediction
        if found != ("flow", "x"):
            raise ValueError(f"schedule and prediction are {found}, expected ('flow', 'x')")


class Flash(Denoiser):
    """See the module's docstring. Images uint8 (B, C, H, W)."""

    config: FlashConfig
    honours = frozenset({"num_steps"})

    @property
    def teacher(self) -> DDPM:
        """The model that draws the pairs; not part of this one's weights."""
        from mnist_transformer.models.loading import companion

        found = companion(self.config.teacher, str(self.device))
        if not isinstance(found, DDPM) or found.config.data != self.config.data:
            kind = f"{type(found).__name__} of {found.config.data.name}"
            raise ValueError(f"the teacher is a {kind}, expected a DDPM of the same data set")
        return found

    def start(self) -> None:
        """Take the teacher's weights, where its network is as wide (arXiv 2303.01469).

        Blocks that the teacher lacks follow its own, and add nothing before they are trained.
        """
        mine, theirs = self.state_dict(), self.teacher.state_dict()
        if all(name in mine and mine[name].shape == x.shape for name, x in theirs.items()):
            self.load_state_dict(theirs, strict=False)

    def compile(self, **how: object) -> None:
        """Block by block, because the teacher's steps are of batches of several sizes."""
        for block in (*self.transformer.blocks, *self.teacher.transformer.blocks):
            block.compile(dynamic=True, **how)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Pseudo-Huber distance (B,) from the teacher's drawing: root mean square, smooth at 0."""
        cond, x0 = self.classes.with_drops(cond), to_signed(images)
        # The first images of a batch are one link from their drawing, the last ones all links.
        place_B = torch.arange(1, len(images) + 1, device=x0.device) / len(images)
        t = (place_B / (1 - FROM_NOISE)).clamp(max=1)
        t = (t * self.config.num_links).ceil() / self.config.num_links
        # Drawn on the CPU, so that one seed gives the same noise on every device.
        x_t = x0.lerp(torch.randn(x0.shape).to(x0.device), t.view(-1, 1, 1, 1))
        own = self.denoise(self.classes.table(cond), x_t, t)
        with torch.no_grad():
            drawn = self.drawn_by_teacher(cond, x_t, t)
        errors = (own - drawn).square().flatten(1).mean(1)
        return (errors + SHARPNESS**2).sqrt() - SHARPNESS

    def drawn_by_teacher(self, cond: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The ends (B, C, H, W) of the teacher's paths from x_t at times (B,)."""
        x, teacher = x_t.clone(), self.teacher
        times = self.diffusion.times(self.config.num_links).to(x_t.device)
        for at, after in pairwise(times[:, None]):
            going = t > (at + after) / 2
            denoise = partial(teacher.guided, cond[going], self.built_in_guidance)
            x_at = x[going]
            x[going] = ddim_step(teacher.diffusion, denoise, x_at, at, after, x_at.clone)
        return x

    def sample_steps(
        self, cond: Tensor, noise: Noise, how: Sampling, keep: Keep | None
    ) -> Iterator[Tensor]:
        """The noise, then one canvas per step; around kept pixels one step for each link."""
        few = self.config.num_steps if keep is None else self.config.num_links
        times = self.diffusion.times(how.num_steps or few)[:-1, None].to(self.device)
        class_BD = self.classes(cond)
        x0 = torch.zeros(len(noise), *self.image_shape, device=self.device)
        for t in times:
            x_t = x0.lerp(noise.normal(*self.image_shape), t)
            if t == 1:
                yield to_uint8(x_t)
            x0 = self.denoise(class_BD, x_t, t).clamp(-1, 1)
            if keep is not None:
                x0 = torch.where(keep.mask, to_signed(keep.images), x0)
            yield to_uint8(x0)
