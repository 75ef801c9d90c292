"""Three faults of an earlier project, rebuilt to be tested and measured; never to be used.

1. RoPE on the head axis: queries and keys (B, heads, T, head_dim) were handed to a function
   that takes (B, T, heads, head_dim), so every token of a head rotated by the same angle, which
   cancels in q.k. The causal mask was the only position signal left.
2. Dropout alive in evaluation: ``scaled_dot_product_attention(dropout_p=p)`` does not follow
   ``eval()``, and p was passed in either mode.
3. Scale by the embedding's size: q.k / sqrt(dim) in place of q.k / sqrt(head_dim), so that the
   written-out attention and the fused one that replaced it could never agree.

Shapes: B batch, N heads, T tokens, S keys, K head_dim.
"""

import torch
from torch import Tensor

from mnist_transformer.networks.positions import At, Rope
from mnist_transformer.networks.transformer import Attention, Transformer


class HeadAxisRope(Rope):
    """RoPE that mistakes the head's index for the token's position (fault 1)."""

    def rotate(self, x_BNTK: Tensor, at: At) -> Tensor:
        turned = super().rotate(x_BNTK.transpose(-3, -2), slice(0, x_BNTK.shape[-3]))
        return turned.transpose(-3, -2)


class AliveDropout(Attention):
    """Attention whose dropout stays on (fault 2)."""

    def train(self, mode: bool = True) -> "AliveDropout":
        return super().train(True)


def turn_heads(transformer: Transformer) -> None:
    """Give a transformer without positions fault 1. Nothing that is saved changes."""
    rope = HeadAxisRope(transformer.head_dim, transformer.num_heads)
    transformer.positions = rope.to(next(transformer.parameters()).device)


def keep_dropout_alive(transformer: Transformer) -> None:
    """Give a transformer fault 2, permanently."""
    for block in transformer.blocks:
        block.attention.__class__ = AliveDropout
        block.attention.train()


def attend_scaled_by_dim(q_BNTK: Tensor, k_BNSK: Tensor, v_BNSK: Tensor, dim: int) -> Tensor:
    """Causal attention with fault 3."""
    num_queries, num_keys = q_BNTK.shape[2], k_BNSK.shape[2]
    scores = q_BNTK @ k_BNSK.mT / dim**0.5
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    return scores.masked_fill(~seen.to(scores.device), float("-inf")).softmax(-1) @ v_BNSK
