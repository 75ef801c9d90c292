"""Drawing around kept pixels: sequential importance resampling (Doucet and Johansen, 2009).

A model that draws in raster order cannot look ahead at the pixels that it must keep, so K
particles draw each image. Each draws free pixels from the model; a kept pixel multiplies its
weight by the probability that the model gave it. When few particles carry most of the weight, new
ones are drawn from them by weight. At the end one is drawn: it follows p(free | kept) as K grows.

Shapes: B images, K particles per image, R = B * K rows, image-major; E resampling times.
"""

import math

import torch
from torch import Tensor

from mnist_transformer.networks.drawing import Noise


class Particles:
    """Weights of B * K particles; ``num_times`` is E, the number of calls of ``resample``."""

    def __init__(self, noise: Noise, num_particles: int, num_times: int) -> None:
        self.num_particles = num_particles
        self.log_weight_BK = torch.zeros(len(noise), num_particles, device=noise.device)
        self._uniform_BE = noise.uniform(num_times + 1)
        self._time = 0

    def weigh(self, rows: Tensor, log_prob: Tensor) -> None:
        """Multiply the weights of these rows by the probabilities of their kept pixels."""
        self.log_weight_BK.view(-1)[rows] += log_prob

    def log_evidence(self) -> Tensor:
        """Estimate (B,) of log p(kept pixels) so far; its exponential is unbiased."""
        return self.log_weight_BK.logsumexp(-1) - math.log(self.num_particles)

    def resample(self) -> Tensor | None:
        """The parent of each row (R,), or None if no image resamples.

        An image resamples when its effective number of particles falls below K / 2.
        """
        uniform_B1 = self._uniform_BE[:, self._time, None]
        self._time += 1
        weight_BK = self._weights()
        poor_B = weight_BK.square().sum(-1) * self.num_particles > 2
        if not poor_B.any():
            return None
        own_K = torch.arange(self.num_particles, device=weight_BK.device)
        # Systematic resampling: K equally spaced points, shifted by one random number.
        point_BK = (own_K + uniform_B1) / self.num_particles
        parent_BK = torch.where(poor_B[:, None], self._pick(weight_BK, point_BK), own_K)
        self.log_weight_BK[poor_B] = self.log_evidence()[poor_B, None]
        return self._rows(parent_BK).flatten()

    def best(self) -> Tensor:
        """The row of the heaviest particle of each image (B,)."""
        return self._rows(self.log_weight_BK.argmax(-1, keepdim=True)).squeeze(-1)

    def choose(self) -> Tensor:
        """One row per image (B,), drawn by weight."""
        return self._rows(self._pick(self._weights(), self._uniform_BE[:, -1:])).squeeze(-1)

    def _weights(self) -> Tensor:
        # NaN where all particles are impossible.
        return self.log_weight_BK.softmax(-1).nan_to_num(1 / self.num_particles)

    def _pick(self, weight_BK: Tensor, point_BN: Tensor) -> Tensor:
        cumulative_BK = weight_BK.cumsum(-1)
        point_BN = point_BN * cumulative_BK[:, -1:]
        index_BN = torch.searchsorted(cumulative_BK, point_BN, right=True)
        return index_BN.clamp(max=self.num_particles - 1)

    def _rows(self, particle_BN: Tensor) -> Tensor:
        first = torch.arange(len(particle_BN), device=particle_BN.device) * self.num_particles
        return first[:, None] + particle_BN
