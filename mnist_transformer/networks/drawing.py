"""Randomness per image, and drawing a symbol from logits.

Shapes: B images, V values of one symbol, I symbols that are drawn one after another.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mnist_transformer.options import Sampling, check_seed


class Noise:
    """Randomness with one generator per image, so that an image does not depend on its batch.

    Args:
        seeds: one integer per image, each in [0, 2**32): torch's generator uses no more bits.
        device: of the results; the CPU draws them, so every device sees the same ones.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device | str = "cpu") -> None:
        self.seeds = [int(seed) for seed in seeds]
        for seed in self.seeds:
            check_seed(seed)
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
    """Log-probability (B,) of one symbol per row: at the temperature, before top-k and nucleus."""
    log_prob_BV = (logits_BV.float() / how.temperature).log_softmax(-1)
    return log_prob_BV.gather(-1, value_B[:, None]).squeeze(-1)


def draw_categorical(logits_BV: Tensor, uniform_B: Tensor, how: Sampling) -> Tensor:
    """Draw one symbol per row by inverting the cumulative distribution: int64 (B,).

    One uniform number decides one symbol, so each row depends on its own image's seed alone.
    """
    cumulative = adjust_logits(logits_BV, how).softmax(-1).cumsum(-1)
    # Float sums may end just below 1: scale by the last entry, and stay below it, so that the
    # first entry above the threshold is a symbol of nonzero probability.
    threshold = uniform_B.clamp(max=1 - 2**-23) * cumulative[:, -1]
    return torch.searchsorted(cumulative, threshold.unsqueeze(-1), right=True).squeeze(-1)


def draw_from_guesses(
    logits_of: Callable[[Tensor, Tensor], Tensor], uniform_BI: Tensor, how: Sampling
) -> Tensor:
    """Symbols (B, I) as if drawn one by one, in fewer passes: Jacobi iteration, arXiv 2002.09928.

    All symbols are drawn at once given a guess of all, then again given the result. Those before
    the first wrong guess are right, so a result that no longer changes is the one drawn one by
    one. ``logits_of`` gives the logits (N, I, V) of all symbols of rows (N,), each given the
    symbols before it in (N, I).
    """
    drawn_BI = torch.zeros_like(uniform_BI, dtype=torch.long)
    row_N = torch.arange(len(drawn_BI), device=drawn_BI.device)
    while len(row_N):
        guess_NI = drawn_BI[row_N]
        logits = logits_of(guess_NI, row_N).flatten(0, 1)
        drawn_NI = draw_categorical(logits, uniform_BI[row_N].flatten(), how).view_as(guess_NI)
        drawn_BI[row_N] = drawn_NI
        # Nothing depends on the last symbol.
        row_N = row_N[(drawn_NI != guess_NI)[:, :-1].any(1)]
    return drawn_BI
