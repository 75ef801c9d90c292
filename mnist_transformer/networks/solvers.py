"""Samplers, small pure functions over ``denoise``: from noise at t = 1 to data at t = 0.

    dx = x0 d(alpha) + noise d(sigma)

is the path of x_t = alpha_t x0 + sigma_t noise as t falls. A sampler takes ``num_steps`` steps
along it, with the network's estimates of x0 and noise. ``normal`` gives all random numbers.

Shapes: N things that are denoised, "..." their own dimensions; t and s are (1,), s below t.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from mnist_transformer.networks.diffusion import Denoise, Diffusion

Normal = Callable[[], Tensor]  # fresh standard normal noise of the shape of x_t


def ddim_step(
    diffusion: Diffusion,
    denoise: Denoise,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    normal: Normal,
    eta: float = 0.0,
) -> Tensor:
    """x_s from x_t: arXiv 2010.02502, equation 12.

    Eta 0 is Euler's step, eta 1 DDPM's ancestral one (arXiv 2006.11239, equation 7) with the
    posterior's variance.
    """
    x0, noise = diffusion.estimate(denoise, x_t, t)
    at_t, at_s = diffusion.levels(t, x_t), diffusion.levels(s, x_t)
    if eta == 0 or s.item() == 0:
        return at_s.alpha * x0 + at_s.sigma * noise
    removed = at_t.sigma**2 - (at_t.alpha / at_s.alpha * at_s.sigma) ** 2
    variance = eta**2 * (at_s.sigma / at_t.sigma) ** 2 * removed.clamp(min=0)
    x_s = at_s.alpha * x0 + (at_s.sigma**2 - variance).clamp(min=0).sqrt() * noise
    return x_s + variance.sqrt() * normal()


def heun_step(
    diffusion: Diffusion, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, normal: Normal
) -> Tensor:
    """Euler's step, corrected by the mean of the estimates at both ends (2206.00364, algorithm 1).

    It takes two evaluations, but only one to reach s = 0, where the noise cannot be estimated.
    """
    x0, noise = diffusion.estimate(denoise, x_t, t)
    at_t, at_s = diffusion.levels(t, x_t), diffusion.levels(s, x_t)
    x_s = at_s.alpha * x0 + at_s.sigma * noise
    if s.item() == 0:
        return x_s
    x0_s, noise_s = diffusion.estimate(denoise, x_s, s)
    along_alpha = (at_s.alpha - at_t.alpha) * (x0 + x0_s)
    along_sigma = (at_s.sigma - at_t.sigma) * (noise + noise_s)
    return x_t + (along_alpha + along_sigma) / 2


STEPS: dict[str, Callable[..., Tensor]] = {
    "ancestral": partial(ddim_step, eta=1.0),
    "ddim": ddim_step,
    "euler": ddim_step,  # the same update, under the name that it has on straight paths
    "heun": heun_step,
}


def sample(
    diffusion: Diffusion,
    denoise: Denoise,
    x_1: Tensor,
    num_steps: int,
    sampler: str,
    normal: Normal,
    keep: tuple[Tensor, Tensor] | None = None,
    num_resamples: int = 1,
    temperature: float = 1.0,
) -> Iterator[Tensor]:
    """Yield x_t (N, ...) after every step, from the noise ``x_1``; the last one is a sample.

    Args:
        sampler: a name of ``STEPS``.
        keep: (x0, mask), both shaped like x_1: where the mask is true, x_t is x0 noised to t.
        num_resamples: with ``keep``, passes of each step, with new noise back to t in between, so
            that the free part comes to fit the kept one (RePaint, arXiv 2201.09865).
        temperature: scales x_1 and the noise of the steps.
    """
    x = temperature * x_1
    for t, s in pairwise(diffusion.times(num_steps).to(x.device).unsqueeze(1)):
        at_t, at_s = diffusion.levels(t, x), diffusion.levels(s, x)
        for repeat in range(num_resamples if keep is not None and s.item() > 0 else 1):
            if repeat:
                ratio = at_t.alpha / at_s.alpha
                added = (at_t.sigma**2 - (ratio * at_s.sigma) ** 2).clamp(min=0)
                x = ratio * x + added.sqrt() * normal()
            x = STEPS[sampler](diffusion, denoise, x, t, s, lambda: temperature * normal())
            if keep is not None:
                kept = at_s.alpha * keep[0] + at_s.sigma * normal()
                x = torch.where(keep[1], kept, x)
        yield x
