"""Attention is right, by checks that the superseded project's three faults fail.

A check is a function that raises AssertionError. Each is made of this project's attention, which
passes, and of a faithful copy of the fault (experiments/old_faults.py), which must not.
Tolerances are absolute and relative, on standard normal inputs: 1e-5 in float32, 2e-2 in
bfloat16 for outputs and 1e-4 and 5e-2 for gradients, against the definition in float64.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers import DIM, NUM_HEADS, NUM_TOKENS, make_transformer
from torch import Tensor

from experiments.old_faults import attend_scaled_by_dim, keep_dropout_alive, turn_heads
from mnist_transformer.networks.attention import attend
from mnist_transformer.networks.transformer import KVCache, Transformer

HEAD_DIM = DIM // NUM_HEADS
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 5e-2)}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_definition(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Equation 1 of arXiv 1706.03762, key by key, where ``seen`` (T, S) allows it."""
    rows = []
    for t in range(q.shape[2]):
        keys, values = k[:, :, seen[t]], v[:, :, seen[t]]
        weights = ((q[:, :, t, None] * keys).sum(-1) / q.shape[-1] ** 0.5).exp()
        rows.append((weights[..., None] * values).sum(2) / weights.sum(-1, keepdim=True))
    return torch.stack(rows, dim=2)


def random_tokens(dtype: torch.dtype, num_queries: int = NUM_TOKENS) -> list[Tensor]:
    """Queries, keys, values of two sequences, rounded to the dtype before anything else."""
    torch.manual_seed(0)
    shapes = [(2, NUM_HEADS, n, HEAD_DIM) for n in (num_queries, NUM_TOKENS, NUM_TOKENS)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def check_equal_to_the_definition(
    attention: Attend, inputs: list[Tensor], seen: Tensor, dtype: torch.dtype
) -> None:
    """Outputs and the gradients of queries, keys and values."""
    output = attention(*inputs)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((output.float() * weight).sum(), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = by_definition(*exact, seen)
    wanted_gradients = torch.autograd.grad((wanted * weight).sum(), exact)
    forward, backward = TOLERANCE[dtype]
    torch.testing.assert_close(output.double(), wanted, atol=forward, rtol=forward)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(got.double(), want, atol=backward, rtol=backward)


def causal(num_queries: int = NUM_TOKENS) -> Tensor:
    ones = torch.ones(num_queries, NUM_TOKENS, dtype=torch.bool)
    return ones.tril(NUM_TOKENS - num_queries)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kernel", [attend, partial(attend, plain=True)])
@pytest.mark.parametrize("num_queries", [1, 5, NUM_TOKENS])
def test_causal_attention(kernel: Attend, dtype: torch.dtype, num_queries: int) -> None:
    """Fewer queries than keys are what a cache leaves: they are the last ones."""
    inputs = random_tokens(dtype, num_queries)
    check_equal_to_the_definition(partial(kernel, causal=True), inputs, causal(num_queries), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kernel", [attend, partial(attend, plain=True)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_a_mask_or_none(kernel: Attend, dtype: torch.dtype, masked: bool) -> None:
    seen = torch.ones(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool)
    if masked:
        seen = torch.rand(seen.shape, generator=torch.Generator().manual_seed(2)) < 0.5
        seen |= torch.eye(NUM_TOKENS, dtype=torch.bool)
    attention = partial(kernel, causal=False, mask=seen if masked else None)
    check_equal_to_the_definition(attention, random_tokens(dtype), seen, dtype)


def test_scale_by_the_embedding_fails_that() -> None:
    faulty = partial(attend_scaled_by_dim, dim=DIM)
    inputs = random_tokens(torch.float32)
    with pytest.raises(AssertionError, match="not close"):
        check_equal_to_the_definition(faulty, inputs, causal(), torch.float32)
    # It is the scale and nothing else: with one head the two sizes are the same.
    check_equal_to_the_definition(
        partial(attend_scaled_by_dim, dim=HEAD_DIM), inputs, causal(), torch.float32
    )


def random_states() -> Tensor:
    return torch.randn(2, NUM_TOKENS, DIM, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def check_evaluation_draws_nothing_at_random(model: Transformer) -> None:
    model.train()
    assert not torch.equal(model(random_states()), model(random_states()))
    model.eval()
    assert torch.equal(model(random_states()), model(random_states()))


def test_dropout_follows_eval_and_the_old_one_did_not() -> None:
    model = make_transformer("learned", depth=1, dropout=0.5)
    check_evaluation_draws_nothing_at_random(model)
    keep_dropout_alive(model)
    with pytest.raises(AssertionError):
        check_evaluation_draws_nothing_at_random(model)


@torch.no_grad()
def check_order_matters(model: Transformer) -> None:
    """In one layer, two earlier tokens that change places change what the last one sees."""
    x = random_states()
    swapped = x[:, [0, 2, 1, *range(3, NUM_TOKENS)]]
    assert (model(x)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-4


def test_rope_tells_the_order_and_the_old_one_did_not() -> None:
    check_order_matters(make_transformer("rope", depth=1))
    model = make_transformer("none", depth=1)
    turn_heads(model)
    with pytest.raises(AssertionError):
        check_order_matters(model)


@torch.no_grad()
def test_the_old_rope_is_no_rope_at_all() -> None:
    """It does turn queries and keys, every token alike, and the products do not notice."""
    x = random_states()
    plain, turned = make_transformer("none", depth=2), make_transformer("none", depth=2)
    turn_heads(turned)
    q = torch.randn(1, NUM_HEADS, NUM_TOKENS, HEAD_DIM)
    assert (turned.positions.rotate(q, slice(0, NUM_TOKENS)) - q)[:, 1:].abs().max() > 0.1
    torch.testing.assert_close(turned(x), plain(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_cache_changes_nothing(dtype: torch.dtype) -> None:
    """Token by token through the cache against one pass; bfloat16 as autocast gives it."""
    model, x = make_transformer("learned_axial_rope", depth=2), random_states()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        whole = model(x)
        cache = KVCache(model, 2, device=x.device)
        parts = torch.cat([model(part, cache) for part in x.split(1, dim=1)], dim=1)
    tolerance = TOLERANCE[dtype][0]
    torch.testing.assert_close(parts, whole, atol=2 * tolerance, rtol=2 * tolerance)
