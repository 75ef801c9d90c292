"""Attention with the kernel that suits device, dtype and length; masks; packed sequences.

    softmax(q k^T / sqrt(K)) v                              (arXiv 1706.03762, equation 1)

Shapes: B batch, N heads, T queries, S keys, K head_dim. For packed sequences B is 1, and T counts
the tokens of all of them, laid end to end.
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
    plain: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v; by the definition where that is faster, or if ``plain``.

    Causal: query i of T attends to keys up to S - T + i, since the queries come last. A bool
    ``mask`` broadcasts to (B, N, T, S), is true where a query attends, and replaces that rule.
    """
    num_queries, num_keys = q_BNTK.shape[2], k_BNSK.shape[2]
    short_in_bf16 = q_BNTK.dtype == torch.bfloat16 and num_keys <= PLAIN_ATTENTION_MAX_KEYS
    # With dropout the fused kernel falls back to the definition too, with a slower dropout.
    plain = plain or (q_BNTK.device.type == "cpu" and (short_in_bf16 or dropout > 0))
    causal = causal and mask is None and num_queries > 1
    if causal and (plain or num_queries < num_keys):
        mask, causal = _causal_mask(num_queries, num_keys, q_BNTK.device), False
    if not plain:
        return F.scaled_dot_product_attention(q_BNTK, k_BNSK, v_BNSK, mask, dropout, causal)
    scores = (q_BNTK * q_BNTK.shape[-1] ** -0.5) @ k_BNSK.transpose(-1, -2)
    if mask is not None:
        # Added, because masked_fill on the scores would cost the gradient an extra pass.
        hidden = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
        scores = scores + hidden
    return drop(scores.softmax(-1), dropout) @ v_BNSK


def _causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


def causal_mask_of(seen_BT: Tensor) -> Tensor:
    """bool (B, 1, T, T) for ``attend``: causal, and no token attends to padding (not ``seen``).

    Each padding token attends to itself, so that its state is not NaN.
    """
    num_tokens = seen_BT.shape[1]
    itself_TT = torch.eye(num_tokens, dtype=torch.bool, device=seen_BT.device)
    causal_TT = _causal_mask(num_tokens, num_tokens, seen_BT.device)
    return ((causal_TT & seen_BT[:, None]) | itself_TT)[:, None]


def drop(x: Tensor, probability: float) -> Tensor:
    """Dropout (arXiv 1207.0580); on a CPU the probability is rounded to 1/256.

    torch draws a wider random number per element there, which takes a seventh of a training step.
    """
    if not probability or x.device.type != "cpu":
        return F.dropout(x, probability)
    dropped = min(255, round(256 * probability))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * (keep.to(x.dtype) * (256 / (256 - dropped)))


class Packing(NamedTuple):
    """Where each of the packed sequences starts and ends."""

    longest: int  # number of tokens of the longest
    bounds: Tensor  # int32 (sequences + 1,): the first token of each, and the end of the last
    place_T: Tensor  # int64, where the tokens are if all sequences are padded to the longest

    @classmethod
    def of(cls, length_B: Tensor) -> "Packing":
        """B sequences of these lengths."""
        longest, bounds = int(length_B.max()), F.pad(length_B.cumsum(0), (1, 0)).int()
        is_token = torch.arange(longest, device=length_B.device) < length_B[:, None]
        return cls(longest, bounds, is_token.flatten().nonzero().squeeze(1))


def attend_packed(
    q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, packing: Packing, *, dropout: float = 0.0
) -> Tensor:
    """Causal attention within each sequence: a kernel in half precision on CUDA, else padded."""
    longest, bounds, place_T = packing
    q_TNK, k_TNK, v_TNK = (x.squeeze(0).transpose(0, 1) for x in (q_BNTK, k_BNTK, v_BNTK))
    if not dropout and _has_packed_kernel(q_BNTK):
        from torch.nn.attention.varlen import varlen_attn

        sizes = bounds, bounds, longest, longest
        y_TNK = varlen_attn(q_TNK, k_TNK, v_TNK, *sizes, window_size=(-1, 0))  # causal
        assert isinstance(y_TNK, Tensor)
        return y_TNK.transpose(0, 1).unsqueeze(0)

    def padded(x_TNK: Tensor) -> Tensor:
        x = x_TNK.new_zeros((len(bounds) - 1) * longest, *x_TNK.shape[1:])
        return x.index_copy(0, place_T, x_TNK).unflatten(0, (-1, longest)).transpose(1, 2)

    # No query attends to the padding, which comes after it.
    y_BNSK = attend(*map(padded, (q_TNK, k_TNK, v_TNK)), causal=True, dropout=dropout)
    return y_BNSK.transpose(1, 2).flatten(0, 1)[place_T].transpose(0, 1).unsqueeze(0)


def _has_packed_kernel(q_BNTK: Tensor) -> bool:
    # FlashAttention's limits. Before torch 2.11 the function takes other arguments, or is missing.
    fits = q_BNTK.shape[-1] % 8 == 0 and q_BNTK.shape[-1] <= 256
    half = q_BNTK.dtype in (torch.bfloat16, torch.float16)
    return q_BNTK.device.type == "cuda" and half and fits and torch.__version__ >= "2.11"
