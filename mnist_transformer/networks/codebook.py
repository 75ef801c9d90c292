"""A codebook learned by online k-means, with dead codes restarted.

n_v and m_v, number and sum of the vectors nearest to code v, are moving averages, and code v =
m_v / n_v (arXiv 1711.00937, appendix A.1). K-means on the first batch initialises the codes. A rare
code is restarted at a vector of the batch, as if it had its fair share of vectors (Jukebox, arXiv
2005.00341, section 3.1). The vector is drawn in proportion to its squared distance to the nearest
code, as in k-means++. Features move fast early in training, so a slow average leaves codes behind:
a decay of 0.97 and a threshold of a tenth of the share restart an unused code after some 80 steps.

Unlike general codebooks it starts at the first training step, has a threshold that fits one token
per image as well as 49, and sums in float32 under autocast. Buffers hold all of its state.

Shapes: V codes, N vectors, C dimensions of a vector.
"""

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

KMEANS_STEPS = 10


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order that a single process with the whole batch has."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class Codebook(nn.Module):
    """V code vectors, each at the mean of the vectors nearest to it.

    Args:
        decay: of the moving averages per step, in [0, 1); it rises until they span the last
            tenth of the steps, so that the codes settle.
        dead: a code used less often than this share of N / V, an even split, is restarted.
    """

    def __init__(self, num_codes: int, dim: int, *, decay: float, dead: float) -> None:
        super().__init__()
        if num_codes < 2 or not 0 <= decay < 1 or not 0 <= dead < 1:
            raise ValueError(
                f"a codebook has {num_codes} codes, decay {decay} and dead {dead}, "
                "expected 2 codes or more and both numbers in [0, 1)"
            )
        self.decay, self.dead = decay, dead
        self.steps = nn.Buffer(torch.zeros(()))
        self.codes = nn.Buffer(torch.randn(num_codes, dim))
        self.counts = nn.Buffer(torch.zeros(num_codes))  # all zero: not started
        self.sums = nn.Buffer(torch.zeros(num_codes, dim))

    def nearest(self, x: Tensor) -> Tensor:
        """int64 (...): the code nearest to each vector (..., C), float32."""
        # |x - c|^2 / 2 without |x|^2 / 2, which is the same for all codes.
        return (self.codes.square().sum(-1) / 2 - x @ self.codes.T).argmin(-1)

    @torch.no_grad()
    def learn(self, rows_NC: Tensor) -> None:
        """Move the averages one step towards the vectors (float32) of all processes."""
        rows_NC = gather(rows_NC)
        if not rows_NC.isfinite().all():
            return  # as the loss is not finite either, training skips this step
        started = bool(self.counts.any())
        weights_N = torch.ones(len(rows_NC))
        if started:
            distances_NC = rows_NC - self.codes[self.nearest(rows_NC)]
            weights_N = distances_NC.square().sum(-1).clamp(min=1e-12).cpu()
        # The first process draws for all, so that their codes stay equal.
        chosen_V = weights_N.multinomial(len(self.codes), replacement=True).to(rows_NC.device)
        spare_VC = rows_NC[gather(chosen_V)[: len(self.codes)]]
        if not started:
            self.codes.copy_(spare_VC)
            for _ in range(KMEANS_STEPS):
                self._follow(rows_NC, spare_VC, decay=0.0)
        self.steps.add_(1)
        self._follow(rows_NC, spare_VC, max(self.decay, 1 - 10 / self.steps.item()))

    def _follow(self, rows_NC: Tensor, spare_VC: Tensor, decay: float) -> None:
        # A matrix product, because a GPU does scattered additions in any order.
        members_NV = F.one_hot(self.nearest(rows_NC), len(self.codes)).to(rows_NC)
        self.counts.lerp_(members_NV.sum(0), 1 - decay)
        self.sums.lerp_(members_NV.T @ rows_NC, 1 - decay)
        share = len(rows_NC) / len(self.codes)
        rare_V = self.counts <= self.dead * share
        self.counts[rare_V] = share
        self.sums[rare_V] = share * spare_VC[rare_V]
        self.codes.copy_(self.sums / self.counts[:, None])


def code_usage(ids: Tensor, num_codes: int) -> tuple[float, float]:
    """Share of the codes used at all, and perplexity: exp(entropy) of how often each is used."""
    counts_V = ids.flatten().cpu().bincount(minlength=num_codes).double()
    entropy = torch.special.entr(counts_V / counts_V.sum()).sum()
    return (counts_V > 0).double().mean().item(), entropy.exp().item()
