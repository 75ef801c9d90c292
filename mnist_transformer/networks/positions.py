"""Where a token is: seven schemes behind one interface.

A scheme adds a vector to the token (``add``), rotates queries and keys (``rotate``), or both.

Shapes: B batch, T tokens, D dim, N heads, K head_dim. ``at`` says where the T tokens are: a slice
of T consecutive positions, or one position per token, int64 (B, T). Positions lie on a grid in
raster order: position = row * width + column. ``rotate`` also takes stacks (..., B, N, T, K).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

At = slice | Tensor


class Positions(nn.Module):
    """No positional encoding: the causal mask is the only signal (NoPE, arXiv 2305.19466)."""

    def add(self, x_BTD: Tensor, at: At) -> Tensor:
        return x_BTD

    def rotate(self, x_BNTK: Tensor, at: At) -> Tensor:
        return x_BNTK


class Added(Positions):
    """A vector per position, in a table (T, D)."""

    def __init__(self, table_TD: Tensor) -> None:
        super().__init__()
        self.table = table_TD

    def add(self, x_BTD: Tensor, at: At) -> Tensor:
        return x_BTD + self.table[at].to(x_BTD.dtype)


def learned(dim: int, num_tokens: int) -> Added:
    """One learned vector per position."""
    return Added(nn.Parameter(torch.randn(num_tokens, dim) * 0.02))


def sinusoidal(dim: int, num_tokens: int) -> Added:
    """Fixed sines and cosines of the position (arXiv 1706.03762, section 3.5)."""
    angle_TF = _angles(torch.arange(num_tokens), dim // 2, base=10_000.0)
    table = torch.cat([angle_TF.sin(), angle_TF.cos()], dim=-1)
    return Added(nn.Buffer(F.pad(table, (0, dim - table.shape[1])), persistent=False))


class Rope(Positions):
    """Rotary embedding of the 1-D position (arXiv 2104.09864, equation 34).

    Pairs (i, i + K/2) of each head's queries and keys rotate by position * frequency_i, so that
    q.k depends on the difference of positions alone. On a grid of a given width, half of the pairs
    rotate with the row and half with the column (axial RoPE, arXiv 2403.13298). Given ``dim``, a
    learned vector says where a token is; rotation says how far apart two tokens are.
    """

    def __init__(
        self, head_dim: int, num_tokens: int, grid_width: int | None = None, dim: int | None = None
    ) -> None:
        super().__init__()
        self.learned = Positions() if dim is None else learned(dim, num_tokens)
        axes, base = [torch.arange(num_tokens)], 10_000.0
        if grid_width is not None:
            axes, base = [axes[0] // grid_width, axes[0] % grid_width], 100.0
        if head_dim % (2 * len(axes)):
            raise ValueError(
                f"head_dim is {head_dim}, expected a multiple of {2 * len(axes)} for RoPE"
            )
        num_frequencies = head_dim // 2 // len(axes)
        angle_TF = torch.cat([_angles(axis, num_frequencies, base) for axis in axes], dim=-1)
        self.cos = nn.Buffer(angle_TF.cos(), persistent=False)
        self.sin = nn.Buffer(angle_TF.sin(), persistent=False)

    def add(self, x_BTD: Tensor, at: At) -> Tensor:
        return self.learned.add(x_BTD, at)

    def rotate(self, x_BNTK: Tensor, at: At) -> Tensor:
        # One angle per token, for all heads: one per head would cancel in q.k.
        cos, sin = (table[at].unsqueeze(-3).to(x_BNTK) for table in (self.cos, self.sin))
        a, b = x_BNTK.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


# Each scheme by name, given D dim, K head_dim, T tokens and a grid W wide.
POSITIONS: dict[str, Callable[[int, int, int, int], Positions]] = {
    "learned": lambda D, K, T, W: learned(D, T),
    "sinusoidal": lambda D, K, T, W: sinusoidal(D, T),
    "rope": lambda D, K, T, W: Rope(K, T),
    "axial_rope": lambda D, K, T, W: Rope(K, T, W),
    "learned_rope": lambda D, K, T, W: Rope(K, T, None, D),
    "learned_axial_rope": lambda D, K, T, W: Rope(K, T, W, D),
    "none": lambda D, K, T, W: Positions(),
}


def _angles(position_T: Tensor, num_frequencies: int, base: float) -> Tensor:
    """position * base^(-i / num_frequencies): (T, num_frequencies)."""
    i = torch.arange(num_frequencies) / max(num_frequencies, 1)
    return position_T[:, None].float() * torch.exp(-math.log(base) * i)
