"""The parts of a step: which images, which update, at what rate, averaged how."""

import pytest
import torch
from helpers import RECIPE, TINY

from mnist_transformer.training import optim, state


def test_batches_go_through_every_image_once_an_epoch():
    seen = torch.cat([state.images_of(step, 10, batch_size=4, seed=0) for step in range(5)])
    for epoch in seen.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(seen[:10], seen[10:])
    assert torch.equal(state.images_of(3, 10, batch_size=4, seed=0), seen[12:16])


def test_batches_larger_than_the_dataset():
    assert sorted(state.images_of(0, 3, batch_size=7, seed=0)[:3].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16), (16, 24)])
def test_muon_is_torchs_own(shape):
    """The batched float32 iteration against torch's, which goes through bfloat16."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for _ in range(3)]
    ours = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    optimizers = [
        optim.Muon(ours, lr=0.02, interval=1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0),
    ]
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(shape)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, p0 in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.03 * (q - p0).norm()


@pytest.mark.parametrize("interval", [1, 4])
def test_matrices_take_turns(interval):
    """Each is updated once in so many steps, by as many times the rate, a like share at a time."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(6, 8)) for _ in range(2 * interval)]
    muon = optim.Muon(params, lr=0.02, interval=interval)
    for _ in range(2 * interval):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.randn(6, 8)
        muon.step()
        moved = [p.detach() - q for p, q in zip(params, before, strict=True) if not p.equal(q)]
        assert len(moved) == 2
        for update in moved:
            largest = torch.linalg.matrix_norm(update, 2) / (0.02 * interval)
            assert 0.6 < largest < 1.3


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    for shape in [(2, 8, 8), (2, 8, 12), (2, 8, 64)]:
        values = torch.linalg.svdvals(optim.orthogonalise(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3
    assert optim.orthogonalise(torch.zeros(1, 4, 16)).eq(0).all()


@pytest.mark.parametrize("family", TINY)
def test_parameters_are_divided_between_the_optimizers(family):
    model = TINY[family].build()
    hidden, rest = optim.param_groups(model)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for prefix in model.adamw_modules:
        assert any(name.startswith(prefix) for name in names.values())
    assert {id(p) for p in hidden}.isdisjoint(id(p) for p in rest)
    assert len(hidden) + len(rest) == len(names)
    assert all(p.ndim == 2 for p in hidden)
    excluded = [n for p in hidden if (n := names[id(p)]).startswith(model.adamw_modules)]
    assert not excluded


def test_schedule():
    progress = [0, 0.05, 0.1, 0.4, 0.5, 0.75, 1]
    factors = [optim.schedule(p, warmup=0.1, decay=0.5) for p in progress]
    assert factors == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])
    assert optim.schedule(0, warmup=0, decay=0) == 1


def test_weights_are_averaged_over_a_share_of_the_run():
    model = RECIPE.model.build()
    average = optim.averaged(model, horizon=0.1)
    for step in range(1000):
        with torch.no_grad():
            model.decoder.gate.output.bias.fill_(step)
        average.update_parameters(model)
    # Under w(t) ~ t^(1 / horizon) the mean lies horizon / (1 + horizon) before the end.
    mean = float(average.module.decoder.gate.output.bias)
    assert mean == pytest.approx(1000 * (1 - 1 / 12), rel=0.02)
