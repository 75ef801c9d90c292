"""Diffusion, shared by all families: noise schedules, a loss and a bound over one function.

    x_t = alpha_t x0 + sigma_t noise,    t from 0 (data) to 1 (noise)

``denoise(x_t, t)`` is a network that predicts x0 ("x"), the noise ("epsilon", DDPM, arXiv
2006.11239) or the direction of the path, v = a_t noise - b_t x0 ("v"): noise - x0 on the straight
lines of rectified flow (arXiv 2209.03003), alpha noise - sigma x0 where alpha^2 + sigma^2 = 1
(arXiv 2202.00512). Given x_t each of the three gives the others, and so do their errors:

    noise error = -(alpha / sigma) x0 error,    v error = -(1 / sigma) x0 error

so the prediction and the space of the error are chosen independently. solvers.py samples.

Shapes: N things that are denoised (images, tokens), "..." their own dimensions; t is (N,), or
(1,) for all of them. Pixels are float32 in [-1, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_transformer.networks.drawing import Noise
from mnist_transformer.utils.checks import check_choice

Denoise = Callable[[Tensor, Tensor], Tensor]  # x_t (N, ...), t (N,) or (1,) -> (N, ...)

NUM_LEVELS = 1000  # T of the paper: the noise levels of "linear" and of the bound; the most steps
SCHEDULES = ("flow", "linear", "cosine")
SPACES = ("x", "epsilon", "v")
# Below this sigma loss weights stay constant (arXiv 2511.13720); a flow's bound starts at it.
MIN_LEVEL = 0.05

# alpha_t^2 of DDPM, section 4: betas from 1e-4 to 0.02; the entry at 0 is the data's.
_BETAS = torch.linspace(1e-4, 0.02, NUM_LEVELS, dtype=torch.float64)
_ALPHA_BAR = torch.cat([torch.ones(1), 1 - _BETAS]).cumprod(0)
_ALPHA, _SIGMA = _ALPHA_BAR.sqrt().float(), (1 - _ALPHA_BAR).sqrt().float()


class Levels(NamedTuple):
    """x_t = alpha x0 + sigma noise and v = v_noise noise - v_data x0, at some t."""

    alpha: Tensor
    sigma: Tensor
    v_noise: Tensor
    v_data: Tensor


@dataclass(frozen=True)
class Diffusion:
    """How data becomes noise, what the network predicts of it, and how it is trained.

    Args:
        schedule: "flow" (alpha = 1 - t, sigma = t), "linear" (DDPM's betas, T = 1,000) or
            "cosine" (alpha = cos(pi t / 2), arXiv 2202.00512).
        prediction, loss_space: output and space of the squared error: "x", "epsilon" or "v".
        time_mean, time_sd: of logit(t) in training, which is normal (arXiv 2403.03206); without
            a mean t is uniform.
        uniform_share: share of training times that stay uniform where there is a mean.
        clip: estimates of x0 are clamped to [-clip, clip].
    """

    schedule: str = "flow"
    prediction: str = "x"
    loss_space: str = "v"
    time_mean: float | None = None
    time_sd: float = 1.0
    uniform_share: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("prediction", self.prediction, SPACES)
        check_choice("loss_space", self.loss_space, SPACES)

    def levels(self, t: Tensor, like: Tensor) -> Levels:
        """The levels at times t, each shaped to multiply ``like`` (N, ...)."""
        t = t.view(-1, *[1] * (like.ndim - 1))
        if self.schedule == "flow":
            return Levels(1 - t, t, torch.ones_like(t), torch.ones_like(t))
        if self.schedule == "cosine":
            angle = t * (math.pi / 2)
            alpha, sigma = angle.cos().clamp(min=0), angle.sin()
        else:
            index = (t * NUM_LEVELS).round().long()
            alpha, sigma = _ALPHA.to(t.device)[index], _SIGMA.to(t.device)[index]
        return Levels(alpha, sigma, alpha, sigma)

    def times(self, num_steps: int) -> Tensor:
        """float32 (num_steps + 1,), from 1 to 0 on the schedule's levels; 1 to 1,000 steps."""
        if not 1 <= num_steps <= NUM_LEVELS:
            raise ValueError(f"num_steps is {num_steps}, expected 1 to {NUM_LEVELS}")
        return self._on_levels(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)).float()

    def draw_times(self, number: int) -> Tensor:
        """float32 (N,) on the CPU: times for training, spread evenly over their distribution.

        N evenly spaced points get one random shift and a random order (arXiv 2107.00630, I.1).
        """
        u = (torch.randperm(number) + torch.rand(1)) / max(number, 1)
        if self.time_mean is not None:
            normal = torch.sigmoid(self.time_mean + self.time_sd * torch.special.ndtri(u))
            # Few normal times are near 0, where the last steps of drawing are.
            u = torch.where(torch.arange(number) < self.uniform_share * number, u, normal)
        return self._on_levels(u, upwards=True).clamp(1 / NUM_LEVELS, 1)

    def _on_levels(self, t: Tensor, upwards: bool = False) -> Tensor:
        if self.schedule != "linear":
            return t
        return ((t * NUM_LEVELS).ceil() if upwards else (t * NUM_LEVELS).round()) / NUM_LEVELS

    def loss(self, denoise: Denoise, x0: Tensor) -> Tensor:
        """Squared error of each prediction, mean over its dimensions: float32 (N,)."""
        # Drawn on the CPU, so that one seed gives the same times and noise on every device.
        t = self.draw_times(len(x0)).to(x0.device)
        noise = torch.randn(x0.shape).to(x0.device)
        at = self.levels(t, x0)
        output = denoise(at.alpha * x0 + at.sigma * noise, t).float()
        targets = {"x": x0, "epsilon": noise, "v": at.v_noise * noise - at.v_data * x0}
        gain = self._gain(self.loss_space, at) / self._gain(self.prediction, at)
        return (gain * (output - targets[self.prediction])).square().flatten(1).mean(1)

    @staticmethod
    def _gain(space: str, at: Levels) -> Tensor:
        """The error in ``space`` per unit of error in x0; levels are kept away from 0."""
        if space == "x":
            return torch.ones_like(at.alpha)
        above = at.alpha.clamp(min=MIN_LEVEL) if space == "epsilon" else 1
        return above / at.sigma.clamp(min=MIN_LEVEL)

    def estimate(self, denoise: Denoise, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's x0 clamped to [-clip, clip], and the noise that matches it; t above 0."""
        at = self.levels(t, x_t)
        output = denoise(x_t, t).float()
        if self.prediction == "epsilon":
            output = (x_t - at.sigma * output) / at.alpha.clamp(min=1e-3)
        elif self.prediction == "v":
            output = at.v_noise * x_t - at.sigma * output
        x0 = output.clamp(-self.clip, self.clip)
        return x0, (x_t - at.alpha * x0) / at.sigma

    def bound(
        self, denoise: Denoise, x0: Tensor, noise: Noise, num_samples: int | None = None
    ) -> Tensor:
        """Unbiased estimate of a variational bound on -log p of 256-level pixels: nats (N,).

        The bounded model draws with the ancestral sampler over T = 1,000 levels, then each pixel
        from a normal around the last x0, discretized to the grey levels:

            KL(q(x_T | x0) | N(0, 1)) + sum_i (snr_i-1 - snr_i) / 2 |x0 - x0_hat(x_i)|^2
            - log p(x0 | x_1)           (arXiv 2006.11239, equations 5, 8 and 13)

        By default all terms of the sum are evaluated, else ``num_samples`` per image, drawn with
        probabilities near their shares of the sum.
        """
        lowest = MIN_LEVEL if self.schedule == "flow" else 1 / NUM_LEVELS
        t = torch.linspace(lowest, 1, NUM_LEVELS, dtype=torch.float64).float().to(x0.device)
        at = self.levels(t, t)
        snr = (at.alpha / at.sigma).square()
        terms = (snr[:-1] - snr[1:]) / 2
        if num_samples is None:
            index = torch.arange(len(terms), device=x0.device).expand(len(x0), -1)
            weights = terms.expand(len(x0), -1)
        else:
            # Squared errors fall about as 1 / snr does; the last step of log(snr) may be infinite.
            share = (snr[:-1].log() - snr[1:].log()).clamp(max=0.1)
            share = share / share.sum()
            places = torch.arange(num_samples, device=x0.device) + noise.uniform(1)
            index = torch.searchsorted(share.cumsum(0), places / num_samples, right=True)
            index = index.clamp(max=len(terms) - 1)
            weights = (terms / share / num_samples)[index]
        last = self.levels(t[-1:], x0)
        prior = last.sigma.square() - 1 + (last.alpha * x0).square() - 2 * last.sigma.log()
        nats = prior.flatten(1).sum(1) / 2
        for i, weight in zip(index.T + 1, weights.T, strict=True):
            x0_hat = self._denoised(denoise, x0, t[i], noise)
            nats = nats + weight * (x0 - x0_hat).square().flatten(1).sum(1)
        x0_hat = self._denoised(denoise, x0, t[:1].expand(len(x0)), noise)
        sd = at.sigma[0] / at.alpha[0]
        return nats - discretized_normal(x0, x0_hat, sd).flatten(1).sum(1)

    def _denoised(self, denoise: Denoise, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        at = self.levels(t, x0)
        x_t = at.alpha * x0 + at.sigma * noise.normal(*x0.shape[1:])
        return self.estimate(denoise, x_t, t)[0]


def discretized_normal(x0: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Log-probability of 256-level pixels x0 under N(mean, sd^2) (arXiv 2006.11239, eq. 13)."""
    upper = torch.where(x0 > 1 - 1 / 255, math.inf, (x0 - mean + 1 / 255) / sd)
    lower = torch.where(x0 < -1 + 1 / 255, -math.inf, (x0 - mean - 1 / 255) / sd)
    # Flip to the left tail, where the cumulative distribution keeps its precision.
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log(-torch.expm1(log_lower - log_upper))


def time_features(t: Tensor, num_features: int) -> Tensor:
    """Cosines and sines of t at frequencies from 1 to 100: float32 (..., num_features)."""
    i = torch.arange(num_features // 2, device=t.device) / max(num_features // 2 - 1, 1)
    angle = t.float().unsqueeze(-1) * torch.exp(math.log(100) * i)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def to_signed(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> Tensor:
    """The nearest of the 256 grey levels; values outside [-1, 1] become black or white."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
