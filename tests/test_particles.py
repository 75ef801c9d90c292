"""Kept pixels weigh particles: on a space small enough to add up, the exact conditional."""

import pytest
import torch
from helpers import SPACES, all_images, random_model

from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.particles import Particles
from mnist_transformer.options import Keep, Sampling

NUM_DRAWN = 1500


def conditional(model, keep: Keep) -> tuple[torch.Tensor, torch.Tensor]:
    """All images that agree with what is kept, and the exact probability of each."""
    images = all_images(model.config)
    kept = keep.mask[0].expand_as(images[0])
    images = images[(images[:, kept] == keep.images[0][kept]).all(-1)]
    with torch.no_grad():
        log_prob = -model.nll(images, [1] * len(images))
    return images, log_prob.softmax(0)


def distance(model, keep: Keep, num_particles: int, num_drawn: int = NUM_DRAWN) -> float:
    """Total variation between what is drawn around the kept pixels and the conditional."""
    images, probability = conditional(model, keep)
    many = Keep(keep.images.expand(num_drawn, -1, -1, -1), keep.mask.expand(num_drawn, -1, -1, -1))
    drawn = model.sample(
        [1] * num_drawn, range(num_drawn), Sampling(num_particles=num_particles), many
    )
    same = (drawn[:, None] == images).flatten(2).all(-1)
    assert same.any(1).all()
    return (same.double().mean(0) - probability).abs().sum().item() / 2


@pytest.mark.parametrize(
    ("name", "level"),
    [("patches of one pixel", 2), ("one patch of four pixels", 1), ("four pixels", 2)],
)
def test_more_particles_come_closer_to_the_exact_conditional(name, level):
    model = random_model(SPACES[name])
    keep = Keep(
        torch.full((1, 1, 2, 2), level, dtype=torch.uint8),
        torch.zeros(1, 1, 2, 2, dtype=torch.bool),
    )
    keep.mask[..., 1, 1] = True
    blind, few, many = (distance(model, keep, k) for k in (1, 4, 64))
    # What 1,500 exact draws would be away from their own distribution, generously.
    noise = 1.5 * (len(conditional(model, keep)[0]) / (2 * torch.pi * NUM_DRAWN)) ** 0.5
    assert many < noise
    assert few < blind
    assert blind > noise


def test_rows_of_an_image_wait_for_each_other():
    """Several patches, some kept and some not: particles have ink in different ones."""
    model = random_model(SPACES["patches of two levels"])
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[..., 3, 3] = 1
    mask = torch.ones_like(image, dtype=torch.bool)
    mask[..., :2, 1:3] = False
    keep = Keep(image, mask)
    noise = 1.5 * (16 / (2 * torch.pi * NUM_DRAWN)) ** 0.5
    assert distance(model, keep, 64) < noise < distance(model, keep, 1)


@pytest.mark.parametrize(
    "name",
    [
        "patches of two levels",
        "a coloured patch without background",
    ],
)
def test_an_image_does_not_depend_on_its_batch(name):
    model = random_model(SPACES[name])
    images = torch.randint(0, 2, (6, *model.image_shape), dtype=torch.uint8)
    mask = torch.rand(6, 1, *model.image_shape[1:]) < 0.5
    together = model.sample([0, 1] * 3, range(6), keep=Keep(images, mask))
    for i in range(6):
        keep = Keep(images[i : i + 1], mask[i : i + 1])
        assert torch.equal(together[i : i + 1], model.sample([i % 2], [i], keep=keep))


def test_weights_evidence_and_descent():
    particles = Particles(Noise([1, 2]), num_particles=4, num_times=2)
    assert particles.resample() is None  # all weigh the same
    log_weight = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    particles.weigh(torch.arange(4), log_weight)
    particles.weigh(torch.arange(4, 8), torch.tensor([-1e9, 0.0, -1e9, -1e9]))
    before = particles.log_evidence()
    torch.testing.assert_close(before, torch.tensor([0.25, 0.25]).log())
    parent = particles.resample()
    assert parent is not None
    assert parent[:4].tolist() == [0, 1, 2, 3]  # still enough of them
    assert parent[4:].tolist() == [5, 5, 5, 5]
    torch.testing.assert_close(particles.log_evidence(), before)
    assert particles.best()[0] == 0
    assert particles.choose()[1] in range(4, 8)


def test_impossible_pixels_leave_something_drawn():
    particles = Particles(Noise([1]), num_particles=2, num_times=1)
    particles.weigh(torch.arange(2), torch.full((2,), float("-inf")))
    particles.resample()
    assert particles.choose()[0] in range(2)
