"""A digit in one pass of a network: consistency distillation of a diffusion model.

    x_s = Euler's step of the teacher from x_t;    f(x_t, t) = f(x_s, s),    f(x_0, 0) = x_0

Along the teacher's path from noise to data every point leads to the same image, and the network f
learns to name it at once (arXiv 2303.01469, algorithm 2). The path has few links, as the teacher
draws as well in eight steps as in fifty: the image passes from the lowest link to the highest,
where x_1 is noise alone. f has the network of ``DDPM``, with larger patches. Each error counts by
its length, not its square (arXiv 2310.14189): where the path forks f names one image, not a blur.

Drawing from x_1 is one pass. More steps add noise to an image and name it again; around kept pixels
they are put back each time (arXiv 2303.01469, algorithms 1 and 4).

Shapes: B images, G passes of the teacher (with guidance class and null class).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mnist_transformer.models.base import evaluating
from mnist_transformer.models.config import DiffusionConfig
from mnist_transformer.models.ddpm import DDPM, Denoiser
from mnist_transformer.networks.conditioning import guide, with_null
from mnist_transformer.networks.diffusion import to_signed, to_uint8
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.solvers import ddim_step
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.utils.devices import fast_autocast

SHARPNESS = 0.03  # root mean square of an error below which it counts by its square


@dataclass(frozen=True)
class FlashConfig(DiffusionConfig):
    """Sizes of a one-step model; ``built_in_guidance`` is that of its teacher.

    Args:
        teacher: a model of diffusion, as ``loading.load`` takes it; training alone needs it.
        num_links: Euler steps of the teacher from noise to data.
    """

    patch_size: int = 7
    depth: int = 6
    num_steps: int = 1
    teacher: str = "mnist-ddpm"
    num_links: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        found = self.schedule, self.prediction
        if found != ("flow", "x"):
            raise ValueError(f"schedule and prediction are {found}, expected ('flow', 'x')")

    def build(self) -> "Flash":
        return Flash(self)


class Flash(Denoiser):
    """See the module's docstring. Images uint8 (B, C, H, W)."""

    config: FlashConfig
    honours = frozenset({"num_steps"})

    @cached_property
    def teacher(self) -> DDPM:
        """The model that is distilled; not part of this one's weights."""
        from mnist_transformer.models.loading import load

        found = load(self.config.teacher, str(self.device))
        if not isinstance(found, DDPM) or found.config.data != self.config.data:
            kind = f"{type(found).__name__} of {found.config.data.name}"
            raise ValueError(f"the teacher is a {kind}, expected a DDPM of the same data set")
        return found.requires_grad_(False)

    def start(self) -> None:
        """Take the teacher's weights, where its network has the same sizes (arXiv 2303.01469)."""
        mine, theirs = self.state_dict(), self.teacher.state_dict()
        if [x.shape for x in mine.values()] == [x.shape for x in theirs.values()]:
            self.load_state_dict(theirs)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Distance of the images that both ends of a link lead to, root mean square (B,)."""
        cond, x0 = self.classes.with_drops(cond), to_signed(images)
        class_BD, num_links = self.classes.table(cond), self.config.num_links
        # Drawn on the CPU, so that one seed gives the same links and noise on every device.
        u = (torch.randperm(len(images)) + torch.rand(1)) / max(len(images), 1)
        link_B = (u * num_links).floor().clamp(max=num_links - 1).to(x0.device)
        t, s = (link_B + 1) / num_links, link_B / num_links
        x_t = x0.lerp(torch.randn(x0.shape).to(x0.device), t.view(-1, 1, 1, 1))
        own = self.denoise(class_BD, x_t, t)
        with evaluating(self), torch.no_grad():
            x_s = self.step_of_teacher(cond, x_t, t, s)
            named = self.denoise(class_BD, x_s, s).clamp(-1, 1)
            target = torch.where((link_B > 0).view(-1, 1, 1, 1), named, x_s)
        errors = (own - target).square().flatten(1).mean(1)
        return (errors + SHARPNESS**2).sqrt() - SHARPNESS

    def step_of_teacher(self, cond: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s from x_t, with times (B,)."""
        teacher, guidance = self.teacher, self.built_in_guidance
        class_GD = teacher.classes(with_null(cond, self.num_classes, guidance))
        num_passes = len(class_GD) // max(len(cond), 1)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            x_G, t_G = x_t.repeat(num_passes, 1, 1, 1), t.repeat(num_passes)
            return guide(teacher.denoise(class_GD, x_G, t_G), guidance)

        return ddim_step(teacher.diffusion, denoise, x_t, t, s, lambda: x_t)

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
            with fast_autocast(self.device):  # as in training
                x0 = self.denoise(class_BD, x_t, t).clamp(-1, 1)
            if keep is not None:
                x0 = torch.where(keep.mask, to_signed(keep.images), x0)
            yield to_uint8(x0)
