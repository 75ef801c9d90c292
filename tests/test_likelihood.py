"""Exact likelihood: over ALL images of a tiny space the probabilities sum to one, and what is
drawn follows them."""

import math

import pytest
import torch
from helpers import SPACES, all_images, random_model

from mnist_transformer.networks.drawing import adjust_logits, draw_categorical
from mnist_transformer.options import Sampling

DRAWN = [
    "patches of one pixel",
    "one patch with background 1",
    "two coloured patches",
    "a coloured patch without background",
    "one patch of four pixels",
    "four pixels",
    "two coloured pixels",
]


LABELS = [
    (name, label)
    for name, config in SPACES.items()
    # The larger spaces take their time.
    for label in ([1] if math.prod(config.image_shape) > 12 else [0, 1, None])
]


@pytest.mark.parametrize(("name", "label"), LABELS)
def test_probabilities_of_all_images_sum_to_one(name, label):
    model, images = random_model(SPACES[name]), all_images(SPACES[name])
    total = 0.0
    with torch.no_grad():
        for batch in images.split(8192):
            nll = model.nll(batch, None if label is None else [label] * len(batch))
            assert model.likelihood == "exact"
            total += (-nll.double()).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("label", [1, None])
def test_drawn_frequencies_follow_the_likelihood(name, label):
    config, num_draws = SPACES[name], 4000
    model, images = random_model(config), all_images(config)
    cond = None if label is None else [label] * len(images)
    with torch.no_grad():
        probability = (-model.nll(images, cond).double()).exp()
    drawn = model.sample(None if label is None else [label] * num_draws, range(num_draws))
    place = config.data.num_levels ** torch.arange(images[0].numel() - 1, -1, -1)
    counts = torch.bincount((drawn.flatten(1).long() * place).sum(-1), minlength=len(images))
    expected = probability * num_draws / probability.sum()
    rare = expected < 5  # the chi-square test wants five or more in each cell: pool the rest
    observed, expected = (
        torch.cat([x[~rare], x[rare].sum()[None]]).double() for x in (counts, expected)
    )
    keep = expected > 0
    statistic = ((observed - expected) ** 2 / expected)[keep].sum()
    assert keep.sum() > 20
    # The share of chi-square with one degree of freedom less than cells that lies above it.
    assert torch.special.gammaincc((keep.sum() - 1) / 2, statistic / 2) > 1e-3


@pytest.mark.parametrize("name", DRAWN)
def test_guidance_combines_the_logits(name):
    """At guidance 0 the class says nothing: draws follow the unconditional likelihood."""
    config = SPACES[name]
    model = random_model(config)
    plain = model.sample(None, range(200))
    unguided = model.sample([1] * 200, range(200), Sampling(guidance=0))
    assert (plain == unguided).float().mean() > 0.99


def test_top_p_keeps_the_nucleus_and_temperature_sharpens():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = adjust_logits(logits, Sampling(top_p=0.7)).softmax(-1)
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    cold = adjust_logits(logits, Sampling(temperature=0.5)).softmax(-1)
    torch.testing.assert_close(cold, (logits * 2).softmax(-1))


def test_a_symbol_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]]).expand(3, 4)
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert draw_categorical(logits, uniform, Sampling()).tolist() == [1, 2, 2]
