"""The backbone: kernels agree, the cache changes nothing, order matters, the future is unseen."""

import pytest
import torch
from helpers import DIM, NUM_TOKENS, make_transformer
from torch.nn import functional as F

from mnist_transformer.networks.attention import attend
from mnist_transformer.networks.positions import POSITIONS, Rope
from mnist_transformer.networks.transformer import KVCache, Transformer, rms_norm


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("num_queries", [1, 5, 12])
def test_attention_kernels_agree(dtype, tolerance, num_queries):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8).to(dtype) for n in (num_queries, 12, 12))
    plain = attend(q.float(), k.float(), v.float(), causal=True, plain=True)
    scores = q.float() @ k.float().mT / 8**0.5
    seen = torch.arange(12) <= torch.arange(12 - num_queries, 12)[:, None]
    naive = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v.float()
    torch.testing.assert_close(plain, naive)
    got = attend(q, k, v, causal=True).float()
    torch.testing.assert_close(got, naive, atol=tolerance, rtol=tolerance)


def test_attention_gradients_agree():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 12, 8, requires_grad=True) for _ in range(3)]
    weight = torch.randn(2, 3, 12, 8)
    fused = torch.autograd.grad((attend(*inputs, causal=True) * weight).sum(), inputs)
    plain = torch.autograd.grad((attend(*inputs, causal=True, plain=True) * weight).sum(), inputs)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("chunk", [1, 5])
def test_cached_equals_uncached(positions, chunk):
    model = make_transformer(positions)
    x = torch.randn(3, NUM_TOKENS, DIM)
    with torch.no_grad():
        whole = model(x)
        cache = KVCache(model, 3, device=x.device)
        parts = [model(part, cache) for part in x.split(chunk, dim=1)]
    assert cache.length == NUM_TOKENS
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_sequences_side_by_side_are_each_one_by_itself(positions):
    model = make_transformer(positions)
    lengths = torch.tensor([3, 1, 5, NUM_TOKENS, 2])
    x_MD = torch.randn(int(lengths.sum()), DIM)
    at_M = torch.cat([torch.randperm(NUM_TOKENS)[:length] for length in lengths.tolist()])
    together = model.side_by_side(x_MD, at_M, lengths).split(lengths.tolist())
    for x, at, states in zip(
        x_MD.split(lengths.tolist()), at_M.split(lengths.tolist()), together, strict=True
    ):
        torch.testing.assert_close(model(x[None], at=at[None])[0], states, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_state_depends_on_itself_and_the_past_alone(positions):
    model = make_transformer(positions)
    x = torch.randn(1, NUM_TOKENS, DIM, requires_grad=True)
    for t in (0, 5, NUM_TOKENS - 1):
        (gradient,) = torch.autograd.grad(model(x)[0, t].sum(), x)
        touched = gradient[0].abs().sum(-1) > 0
        assert touched.tolist() == [s <= t for s in range(NUM_TOKENS)]


@pytest.mark.parametrize("positions", [p for p in POSITIONS if p != "none"])
def test_one_layer_tells_the_order_of_earlier_tokens(positions):
    """RoPE along the wrong axis turns all tokens alike, and fails this."""
    model = make_transformer(positions, depth=1)
    x = torch.randn(1, NUM_TOKENS, DIM)
    swapped = x[:, [0, 2, 1, *range(3, NUM_TOKENS)]]
    with torch.no_grad():
        difference = (model(x)[:, -1] - model(swapped)[:, -1]).abs().max()
    assert difference > 1e-4


def test_without_positions_one_layer_is_blind_to_order():
    model = make_transformer("none", depth=1)
    x = torch.randn(1, NUM_TOKENS, DIM)
    swapped = x[:, [0, 2, 1, *range(3, NUM_TOKENS)]]
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:, -1], model(swapped)[:, -1], atol=1e-5, rtol=1e-5)


def test_rope_scores_depend_on_offsets_alone():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8)
    rope = Rope(8, 30)

    def rotate(x: torch.Tensor, position: int) -> torch.Tensor:
        return rope.rotate(x, slice(position, position + 1))

    scores = [(rotate(q, start + 4) * rotate(k, start)).sum(-1) for start in (0, 7, 20)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores[0], scores[2], atol=1e-5, rtol=1e-5)
    assert (rotate(q, 1) - q).abs().max() > 0.1


def test_axial_rope_scores_depend_on_row_and_column_offsets():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8)
    rope = Rope(8, 25, grid_width=5)

    def score(query: int, key: int) -> torch.Tensor:
        at = torch.tensor([[query], [key]])  # one position a token works as a slice does
        return (rope.rotate(q, at[:1]) * rope.rotate(k, at[1:])).sum(-1)

    torch.testing.assert_close(score(6, 0), score(18, 12), atol=1e-5, rtol=1e-5)
    # Positions 4 and 5 follow one another, but lie at the two ends of neighbouring rows.
    assert (score(5, 4) - score(6, 5)).abs().max() > 1e-3


def test_dropout_follows_eval():
    model = make_transformer(dropout=0.5)
    x = torch.randn(1, NUM_TOKENS, DIM)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))


def test_blocks_start_as_the_identity():
    torch.manual_seed(0)
    model = Transformer(
        dim=DIM, depth=2, num_heads=2, mlp_dim=48, num_tokens=4, grid_width=2, positions="none"
    )
    x = torch.randn(1, 4, DIM)
    torch.testing.assert_close(model(x), F.rms_norm(x, (DIM,), eps=1e-6))


def test_norm_is_torch_s_own():
    torch.manual_seed(0)
    x = torch.randn(5, 8)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (8,), eps=1e-6))


@pytest.mark.parametrize("positions", POSITIONS)
def test_tokens_may_lie_anywhere(positions):
    """Positions and mask given token by token: the same tokens in another order."""
    model = make_transformer(positions)
    x = torch.randn(2, NUM_TOKENS, DIM)
    order = torch.stack([torch.randperm(NUM_TOKENS) for _ in range(2)])
    shuffled = x.gather(1, order[..., None].expand_as(x))
    seen = order[:, None, :, None] >= order[:, None, None, :]
    with torch.no_grad():
        want = model(x).gather(1, order[..., None].expand_as(x))
        torch.testing.assert_close(model(shuffled, at=order, mask=seen), want)


def test_condition_modulates_every_token_and_starts_as_nothing():
    torch.manual_seed(0)
    model = Transformer(
        dim=DIM,
        depth=2,
        num_heads=2,
        mlp_dim=48,
        num_tokens=4,
        grid_width=2,
        positions="learned",
        causal=False,
        cond_dim=6,
    )
    x, cond = torch.randn(2, 4, DIM), torch.randn(2, 6)
    torch.testing.assert_close(model(x, cond=cond), model(x, cond=torch.zeros(2, 6)))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        assert "modulation" in name or "attention" in name or "mlp" in name or "table" in name
    changed = (model(x, cond=cond) - model(x, cond=cond.flip(0))).abs().amax(-1)
    assert (changed > 1e-3).all()
    each = cond[:, None].expand(2, 4, 6)
    torch.testing.assert_close(model(x, cond=each), model(x, cond=cond))


def test_unknown_scheme_and_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="'alibi', expected one of learned"):
        make_transformer("alibi")
    with pytest.raises(ValueError, match="head_dim is 6, expected a multiple of 4"):
        Rope(6, 4, grid_width=2)
    with pytest.raises(ValueError, match="dim is 30, expected a multiple of num_heads 4"):
        Transformer(
            dim=30, depth=1, num_heads=4, mlp_dim=8, num_tokens=4, grid_width=2, positions="none"
        )
