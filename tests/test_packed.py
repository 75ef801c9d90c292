"""Packed sequences: the kernel for CUDA is given what it documents, and is the equal of padding.

Its numbers come from a stand-in, the definition sequence by sequence, which is registered as the
kernel's implementation for CPUs; torch's own checks, layout and autograd around it are real.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from mnist_transformer.networks import attention
from mnist_transformer.networks.attention import Packing, attend_packed

LENGTHS = torch.tensor([3, 1, 5, 12, 2])
called: list[str] = []


def sequences(bounds: Tensor, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tokens of each sequence, (N, tokens, K) from each (T, N, K)."""
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        yield [x[first:last].transpose(0, 1) for x in tensors]


def weights(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    scores = q @ k.mT / 4
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, float("-inf"))
    return scores.softmax(-1)


@varlen._varlen_attn.register_kernel("cpu")
def forward(q, k, v, bounds, bounds_k, longest, longest_k, is_causal, *rest):
    called.append("forward")
    for x in (q, k, v):
        assert x.shape == (23, 2, 16)
        assert x.stride(-1) == 1
    assert bounds.dtype == torch.int32
    assert bounds.tolist() == bounds_k.tolist() == [0, 3, 4, 9, 21, 23]
    assert longest == longest_k == 12
    parts = [weights(q, k, is_causal) @ v for q, k, v in sequences(bounds, q, k, v)]
    y = torch.cat(parts, 1).transpose(0, 1).contiguous()
    return y, torch.zeros(2, 23), torch.zeros(2, dtype=torch.uint64)


@varlen._varlen_attn_backward.register_kernel("cpu")
def backward(grad, q, k, v, out, lse, bounds, bounds_k, longest, longest_k, is_causal, *rest):
    called.append("backward")
    parts = []
    for q1, k1, v1, g in sequences(bounds, q, k, v, grad):
        w = weights(q1, k1, is_causal)
        dw = g @ v1.mT
        ds = w * (dw - (dw * w).sum(-1, keepdim=True)) / 4
        parts.append((ds @ k1, ds.mT @ q1, w.mT @ g))
    return tuple(torch.cat(x, 1).transpose(0, 1).contiguous() for x in zip(*parts, strict=True))


def test_one_kernel_is_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    called.clear()
    # As they lie in the model: queries and keys in place, values a view of (1, T, N, K).
    q, k, v = torch.randn(1, 2, 23, 16), torch.randn(1, 2, 23, 16), torch.randn(1, 23, 2, 16)
    qkv = [x.requires_grad_() for x in (q, k, v.transpose(1, 2))]
    weight = torch.randn(1, 2, 23, 16)
    found = []
    for has_kernel in (False, True):
        monkeypatch.setattr(attention, "_has_packed_kernel", lambda q, has=has_kernel: has)
        y = attend_packed(*qkv, Packing.of(LENGTHS))
        found.append([y, *torch.autograd.grad((y * weight).sum(), qkv)])
    assert called == ["forward", "backward"]
    for padded, kernel in zip(*found, strict=True):
        torch.testing.assert_close(padded, kernel)


def test_the_kernel_is_for_half_precision_on_cuda() -> None:
    def has(dtype: torch.dtype, device: str, head_dim: int) -> bool:
        with torch._subclasses.fake_tensor.FakeTensorMode():
            return attention._has_packed_kernel(
                torch.empty(1, 2, 5, head_dim, dtype=dtype, device=device)
            )

    assert has(torch.bfloat16, "cuda", 64)
    assert not has(torch.float32, "cuda", 64)
    assert not has(torch.bfloat16, "cuda", 50)
    assert not has(torch.bfloat16, "cpu", 64)
