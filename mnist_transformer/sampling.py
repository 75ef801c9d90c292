"""How to draw: options, per-image randomness and what to keep.

Shapes: B images, C channels, H x W pixels, V values of one symbol.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
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


class Noise:
    """Randomness with one generator an image, so that image k does not depend on its batch.

    Args:
        seeds: one integer an image, each in [0, 2**32): torch's generator uses no more bits.
        device: where the draws are wanted; they are made on the CPU, so every device sees
            the same ones.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device | str = "cpu") -> None:
        self.seeds = [int(seed) for seed in seeds]
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"seed is {seed}, expected an integer from 0 to 2**32 - 1")
        self.device = torch.device(device)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def uniform(self, *shape: int) -> Tensor:
        """float32 (B, *shape), uniform in [0, 1)."""
        draws = [torch.rand(shape, generator=generator) for generator in self._generators]
        return torch.stack(draws).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """float32 (B, *shape), standard normal."""
        draws = [torch.randn(shape, generator=generator) for generator in self._generators]
        return torch.stack(draws).to(self.device)


def adjust_logits(logits_BV: Tensor, how: Sampling) -> Tensor:
    """Logits (B, V) after temperature, top-k and nucleus filtering, in float32."""
    logits_BV = logits_BV.float()
    if how.temperature != 1:
        logits_BV = logits_BV / how.temperature
    if how.top_k is not None and how.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(how.top_k).values[..., -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, float("-inf"))
    if how.top_p < 1:
        ordered, index = logits_BV.softmax(-1).sort(dim=-1, descending=True)
        # A symbol stays when the mass before it is below top_p; the first always does.
        drop = (ordered.cumsum(-1) - ordered) >= how.top_p
        logits_BV = logits_BV.masked_fill(drop.scatter(-1, index, drop), float("-inf"))
    return logits_BV


def log_prob(logits_BV: Tensor, value_B: Tensor, how: Sampling) -> Tensor:
    """Log-probability (B,) of one symbol a row: at the temperature, before top-k and nucleus."""
    log_prob_BV = (logits_BV.float() / how.temperature).log_softmax(-1)
    return log_prob_BV.gather(-1, value_B[:, None]).squeeze(-1)


def draw_categorical(logits_BV: Tensor, uniform_B: Tensor, how: Sampling) -> Tensor:
    """Draw one symbol a row by inverting the cumulative distribution: int64 (B,).

    One uniform number decides one symbol, so the result depends on its own image's seed only.
    """
    cumulative = adjust_logits(logits_BV, how).softmax(-1).cumsum(-1)
    # Scale by the last entry, since float sums may end just below 1, and stay below it, as this
    # factor does however it is rounded: the first entry above the threshold is then a symbol of
    # nonzero probability.
    threshold = uniform_B.clamp(max=1 - 2**-23) * cumulative[:, -1]
    return torch.searchsorted(cumulative, threshold.unsqueeze(-1), right=True).squeeze(-1)
