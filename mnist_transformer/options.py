"""How to draw: the options of one drawing, declared once, and the pixels that it must keep.

Importing this needs no torch: the command line and the demo derive their options from it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SAMPLERS = ("ancestral", "ddim", "euler", "heun")


@dataclass(frozen=True)
class Sampling:
    """Options of one drawing; a family that does not honour one of them raises ValueError.

    Args:
        temperature: divides the logits, or multiplies the noise that a continuous token is
            drawn from, above 0; 1 samples the model's own distribution.
        top_k: keep this many of the most probable symbols, 1 or more; None keeps all.
        top_p: keep the most probable symbols that together reach this mass, in (0, 1]
            (nucleus sampling, arXiv 1904.09751).
        guidance: classifier-free guidance scale, 0 or more (arXiv 2207.12598): 1 is plain
            class-conditional sampling, 0 ignores the class, above 1 overstates it.
        num_steps: number of refinement steps, for families that draw in steps.
        sampler: how diffusion gets from noise to data, one of ``SAMPLERS``; by default the
            model's own.
        guidance_interval: diffusion is guided at noise levels t with low < t <= high only, 0
            being data and 1 noise (arXiv 2404.07724).
        num_particles: how many drawings compete for each image around kept pixels, in families
            that draw in raster order (particles.py), 1 or more; 1 does not look ahead. Without
            kept pixels there is nothing to compete for, and no such option.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    guidance: float = 1.0
    num_steps: int | None = None
    sampler: str | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    num_particles: int = 16

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.temperature == float("inf"):
            raise ValueError(f"temperature is {self.temperature}, expected a finite number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected 1 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected a number in (0, 1]")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}, expected a finite number of 0 or more")
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}, expected 1 or more")
        if self.num_particles < 1:
            raise ValueError(f"num_particles is {self.num_particles}, expected 1 or more")
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}, expected one of {', '.join(SAMPLERS)}")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"guidance_interval is {self.guidance_interval}, expected 0 <= low < high <= 1"
            )

    def changed(self) -> set[str]:
        """Names of the options that differ from their defaults."""
        return {f.name for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True)
class Keep:
    """Pixels that a drawing must keep: inpainting is sampling with this.

    Args:
        images: uint8 (B, C, H, W).
        mask: bool (B, 1, H, W), true where the pixel of ``images`` is kept.
    """

    images: Tensor
    mask: Tensor
