"""Attention by the kernel that suits device, dtype and length; its masks; packed sequences.

    softmax(q k^T / sqrt(K)) v                              (arXiv 1706.03762, equation 1)

Shapes: B batch, N heads, T queries, S keys, K head_dim; packed, B is 1 and T is all tokens of all
sequences, one sequence behind the other.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to this many keys plain softmax(QK^T)V beats the fused kernel in bf16 on a CPU.
PLAIN_ATTENTION_MAX_KEYS = 256


def attend(
    q_BNTK: Tensor,
    k_BNSK: Tensor,
    v_BNSK: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, by the kernel that suits device, dtype and length.

    Causal means that query i of T sees keys up to S - T + i: the queries are the last ones. A
    bool ``mask`` that broadcasts to (B, N, T, S), true where a query sees a key, replaces it.
    """
    num_queries, num_keys = q_BNTK.shape[2], k_BNSK.shape[2]
    short_in_bf16 = q_BNTK.dtype == torch.bfloat16 and num_keys <= PLAIN_ATTENTION_MAX_KEYS
    # With dropout the fused kernel writes out the definition too, with a slower dropout.
    if q_BNTK.device.type == "cpu" and (short_in_bf16 or dropout):
        return plain_attention(q_BNTK, k_BNSK, v_BNSK, causal=causal, mask=mask, dropout=dropout)
    causal = causal and mask is None and num_queries > 1
    if causal and num_queries < num_keys:
        mask = _causal_mask(num_queries, num_keys, q_BNTK.device)
    return F.scaled_dot_product_attention(
        q_BNTK,
        k_BNSK,
        v_BNSK,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
    )


def plain_attention(
    q_BNTK: Tensor,
    k_BNSK: Tensor,
    v_BNSK: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The definition, written out: arXiv 1706.03762, equation 1."""
    num_queries, num_keys = q_BNTK.shape[2], k_BNSK.shape[2]
    scores = (q_BNTK * q_BNTK.shape[-1] ** -0.5) @ k_BNSK.transpose(-1, -2)
    if causal and mask is None and num_queries > 1:
        mask = _causal_mask(num_queries, num_keys, scores.device)
    if mask is not None:
        # Added, where filling it in would cost the gradient a pass of its own.
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(
            ~mask, float("-inf")
        )
    return drop(scores.softmax(-1), dropout) @ v_BNSK


def _causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


def causal_mask_of(seen_BT: Tensor) -> Tensor:
    """bool (B, 1, T, T) for ``attend``: causal, but of padding (not ``seen``) nothing is read.

    Every token sees itself at least: else the state of padding, which counts nothing, is NaN.
    """
    num_tokens = seen_BT.shape[1]
    itself_TT = torch.eye(num_tokens, dtype=torch.bool, device=seen_BT.device)
    causal_TT = _causal_mask(num_tokens, num_tokens, seen_BT.device)
    return ((causal_TT & seen_BT[:, None]) | itself_TT)[:, None]


def drop(x: Tensor, probability: float) -> Tensor:
    """Dropout (arXiv 1207.0580), of a probability that a CPU rounds to 1/256.

    There torch draws one random number an element, which made up a seventh of a training step;
    a byte is enough.
    """
    if not probability or x.device.type != "cpu":
        return F.dropout(x, probability)
    dropped = min(255, round(256 * probability))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * (keep.to(x.dtype) * (256 / (256 - dropped)))


class Packing(NamedTuple):
    """Sequences that are packed, one behind the other.

    Args:
        lengths: number of tokens of each.
        bounds: int32 (sequences + 1,): the first token of each, and the end of the last.
    """

    lengths: list[int]
    bounds: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> "Packing":
        """Of sequences with these lengths, int64 (sequences,)."""
        return cls(lengths.tolist(), F.pad(lengths.cumsum(0), (1, 0)).int())


def attend_packed(
    q_BNTK: Tensor,
    k_BNTK: Tensor,
    v_BNTK: Tensor,
    packing: Packing,
    *,
    causal: bool,
    dropout: float = 0.0,
) -> Tensor:
    """``attend`` within each of the packed sequences.

    On a CUDA GPU one kernel computes them all in half precision, if nothing is dropped. Otherwise
    a loop goes through them.
    """
    if _has_packed_kernel(q_BNTK) and not dropout:
        return _by_packed_kernel(q_BNTK, k_BNTK, v_BNTK, packing, causal)
    sequences = zip(*(x.split(packing.lengths, 2) for x in (q_BNTK, k_BNTK, v_BNTK)), strict=True)
    return torch.cat([attend(*x, causal=causal, dropout=dropout) for x in sequences], 2)


def _has_packed_kernel(q_BNTK: Tensor) -> bool:
    # FlashAttention's. Before torch 2.11 the function takes other arguments, or is missing.
    head_dim = q_BNTK.shape[-1]
    return (
        q_BNTK.device.type == "cuda"
        and q_BNTK.dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= 256
        and torch.__version__ >= "2.11"
    )


def _by_packed_kernel(
    q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, packing: Packing, causal: bool
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q_TNK, k_TNK, v_TNK = (x.squeeze(0).transpose(0, 1) for x in (q_BNTK, k_BNTK, v_BNTK))
    bounds, longest = packing.bounds, max(packing.lengths)
    window = (-1, 0 if causal else -1)  # numbers of keys before and after a token's own; -1: all
    y_TNK = varlen_attn(q_TNK, k_TNK, v_TNK, bounds, bounds, longest, longest, window_size=window)
    assert isinstance(y_TNK, Tensor)
    return y_TNK.transpose(0, 1).unsqueeze(0)
