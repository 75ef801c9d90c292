"""The images of each training step, and the seeds of everything drawn at random.

Both are functions of the run's seed and the step alone, so a run can go on from any step.
"""

import numpy as np
import torch
from torch import Tensor


def mix(*numbers: int) -> int:
    """A seed for torch from several numbers, 0 or more each."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Batches:
    """The images of step s: the run's permutations one after another, cut to batches."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """int64 (batch_size,)."""
        place, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while place < end:
            epoch, first = divmod(place, self.num_images)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(mix(self.seed, 0, epoch))
                self._order = torch.randperm(self.num_images, generator=generator)
                self._epoch = epoch
            parts.append(self._order[first : first + end - place])
            place += len(parts[-1])
        return torch.cat(parts)
