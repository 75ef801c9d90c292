"""The images of each training step, and the seeds of everything drawn at random.

Both are functions of the run's seed and the step alone, so a run can go on from any step.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def mix(*numbers: int) -> int:
    """A seed for torch from several numbers, 0 or more each."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def images_of(step: int, num_images: int, batch_size: int, seed: int) -> Tensor:
    """int64 (batch_size,): the run's permutations one after another, cut to batches."""
    epoch, first = divmod(step * batch_size, num_images)
    num_epochs = -(-(first + batch_size) // num_images)
    orders = [_permutation(num_images, seed, epoch + further) for further in range(num_epochs)]
    return torch.cat(orders)[first : first + batch_size]


@lru_cache(maxsize=1)
def _permutation(num_images: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(mix(seed, 0, epoch))
    return torch.randperm(num_images, generator=generator)
