"""The backbone of most families: a pre-norm transformer with a key-value cache.

    x = x + Attention(norm(x));  x = x + MLP(norm(x))

RMSNorm (arXiv 1910.07467) has no gain, since the next matrix would absorb it. Queries and keys are
normalised per head (arXiv 2302.05442). Output projections start at zero, so that every block starts
as the identity. With ``cond_dim`` a condition (a class, a noise level) sets scale, shift and gate
of every branch: adaptive norm, arXiv 2212.09748.

Shapes: B batch, T tokens, S keys seen so far, D dim, N heads, K head_dim, C cond_dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.networks.attention import Packing, attend, attend_packed, drop
from mnist_transformer.networks.positions import POSITIONS, At, Positions
from mnist_transformer.utils.checks import check_choice, check_multiple, check_share


class KVCache:
    """Keys and values of every layer, in buffers for all positions."""

    def __init__(self, model: "Transformer", batch_size: int, *, device: torch.device) -> None:
        shape = (batch_size, model.num_heads, model.num_tokens, model.head_dim)
        self.length = self._layer = 0
        self._layers = [torch.empty(2, *shape, device=device) for _ in model.blocks]

    def extend(self, k_BNTK: Tensor, v_BNTK: Tensor) -> tuple[Tensor, Tensor]:
        """Append T keys and values to the next layer in turn; returns all that it has."""
        kept, stop = self._layers[self._layer], self.length + k_BNTK.shape[2]
        kept[0, :, :, self.length : stop] = k_BNTK
        kept[1, :, :, self.length : stop] = v_BNTK
        self._layer = (self._layer + 1) % len(self._layers)
        self.length = self.length if self._layer else stop
        return kept[0, :, :, :stop], kept[1, :, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Continue with these sequences of the batch, int64 (B,), at most as many as before."""
        for layer, kept in enumerate(self._layers):
            chosen = kept[..., : self.length, :].index_select(1, rows)
            self._layers[layer] = kept[:, : len(rows)]
            self._layers[layer][..., : self.length, :] = chosen


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x) over the last dimension, in float32: on a CPU 1.7 times as fast as torch's."""
    x = x.float()  # under autocast too: squares of bfloat16 are coarse
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The map with all its parameters set to zero."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


class Pass(NamedTuple):
    """The arguments of ``Transformer.forward`` that all blocks share in one pass."""

    at: At
    mask: Tensor | None
    cache: KVCache | None
    cond: Tensor | None
    packing: Packing | None
    causal: bool


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        check_multiple("dim", dim, num_heads, "num_heads ")
        self.num_heads, self.head_dim, self.dropout = num_heads, dim // num_heads, dropout
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = zeroed(nn.Linear(dim, dim, bias=False))

    def forward(self, x_BTD: Tensor, positions: Positions, run: Pass) -> Tensor:
        q_BNTK, k_BNTK, v_BNTK = (
            project(x_BTD).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        # Both at once: with one token per step, time depends on the number of operations.
        qk = positions.rotate(rms_norm(torch.stack([q_BNTK, k_BNTK])), run.at)
        q_BNTK, k_BNTK = qk.unbind()
        if run.cache is not None:
            k_BNTK, v_BNTK = run.cache.extend(k_BNTK, v_BNTK)
        # Under autocast the norms return float32: all three must agree.
        q_BNTK, k_BNTK = q_BNTK.to(v_BNTK.dtype), k_BNTK.to(v_BNTK.dtype)
        qkv = q_BNTK, k_BNTK, v_BNTK
        dropout = self.dropout if self.training else 0.0  # the kernels do not follow eval()
        if run.packing is None:
            y_BNTK = attend(*qkv, causal=run.causal, mask=run.mask, dropout=dropout)
        else:
            y_BNTK = attend_packed(*qkv, run.packing, dropout=dropout)
        return self.output(y_BNTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with a squared ReLU between them (arXiv 2109.08668)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = zeroed(nn.Linear(hidden_dim, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class Modulation(nn.Module):
    """``num_chunks`` vectors (B, T or 1, D) from the condition, all zero at the start."""

    def __init__(self, cond_dim: int, dim: int, num_chunks: int) -> None:
        super().__init__()
        # One matrix per chunk: in a joint one, Muon would make rows of all chunks orthogonal.
        self.linears = nn.ModuleList(zeroed(nn.Linear(cond_dim, dim)) for _ in range(num_chunks))

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        cond = F.silu(cond)
        return tuple(linear(cond) for linear in self.linears)


def modulate(x_BTD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x_BTD, 1 + scale)


class Block(nn.Module):
    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, dropout: float, cond_dim: int | None
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads, dropout)
        self.mlp = MLP(dim, mlp_dim)
        self.probability = dropout
        self.modulation = Modulation(cond_dim, dim, 6) if cond_dim is not None else None

    def dropout(self, x: Tensor) -> Tensor:
        return drop(x, self.probability if self.training else 0.0)

    def forward(self, x_BTD: Tensor, positions: Positions, run: Pass) -> Tensor:
        if self.modulation is None:
            x_BTD = x_BTD + self.dropout(self.attention(rms_norm(x_BTD), positions, run))
            return x_BTD + self.dropout(self.mlp(rms_norm(x_BTD)))
        # Gates start at one, not at zero as in the paper: two zeros in a row would never learn.
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(run.cond)
        attended = self.attention(modulate(rms_norm(x_BTD), shift, scale), positions, run)
        x_BTD = x_BTD + (1 + gate) * self.dropout(attended)
        mixed = self.mlp(modulate(rms_norm(x_BTD), mlp_shift, mlp_scale))
        return x_BTD + (1 + mlp_gate) * self.dropout(mixed)


class Transformer(nn.Module):
    """Embedded tokens (B, T, D) to states (B, T, D).

    Args:
        dim, mlp_dim: width of a token, and of the MLPs' hidden layer.
        depth: number of blocks.
        num_tokens: the longest sequence, on a grid ``grid_width`` wide in raster order.
        positions: a name of ``positions.POSITIONS``.
        causal: whether a token attends to itself and earlier ones only.
        cond_dim: width of the condition of adaptive norms; None for plain ones.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        num_tokens: int,
        grid_width: int,
        positions: str,
        dropout: float = 0.0,
        causal: bool = True,
        cond_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_share("dropout", dropout)
        check_choice("positions", positions, POSITIONS)
        self.num_tokens, self.num_heads, self.head_dim = num_tokens, num_heads, dim // num_heads
        self.causal = causal
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_dim, dropout, cond_dim) for _ in range(depth)
        )
        self.positions = POSITIONS[positions](dim, self.head_dim, num_tokens, grid_width)
        self.modulation = Modulation(cond_dim, dim, 2) if cond_dim is not None else None

    def forward(
        self,
        x_BTD: Tensor,
        cache: KVCache | None = None,
        *,
        at: At | None = None,
        mask: Tensor | None = None,
        cond: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """States of the T given tokens; with a cache they continue the tokens it holds.

        Args:
            at: int64 (B, T), the tokens' positions; by default consecutive ones.
            mask: bool, broadcasts to (B, N, T, S), true where a token attends; replaces
                the causal rule.
            cond: (B, C), or (B, T, C) for one per token; required with ``cond_dim``.
            packing: bounds of packed sequences. Attention is causal within each, without ``mask``.
        """
        if at is None:
            start = cache.length if cache is not None else 0
            at = slice(start, start + x_BTD.shape[1])
        if cond is not None and cond.ndim == 2:
            cond = cond[:, None]
        run = Pass(at, mask, cache, cond, packing, self.causal)
        x_BTD = self.positions.add(x_BTD, at)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.positions, run)
        x_BTD = rms_norm(x_BTD)
        return x_BTD if self.modulation is None else modulate(x_BTD, *self.modulation(cond))

    def side_by_side(self, x_MD: Tensor, at_M: Tensor, lengths_B: Tensor) -> Tensor:
        """States (M, D) of all tokens of B packed sequences."""
        return self(x_MD[None], at=at_M[None], packing=Packing.of(lengths_B))[0]
