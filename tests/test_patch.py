"""What the patch model promises beyond the contract: blank patches, batches."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY, moved

from mnist_transformer.models.patch_head import first_ink
from mnist_transformer.models.patch_sampler import PatchSampler
from mnist_transformer.sampling import Noise, Sampling


@pytest.fixture
def model():
    return moved(replace(TINY["patch"], law=True)).eval()


def test_likelihood_of_an_image_does_not_depend_on_its_batch(model):
    images = torch.randint(0, 16, (9, 1, 8, 8), dtype=torch.uint8)
    images *= torch.rand(9, 1, 8, 8) < torch.linspace(0, 0.3, 9)[:, None, None, None]
    labels = torch.arange(9) % 3
    together = model.nll(images, labels).nats
    alone = [model.nll(images[i : i + 1], labels[i : i + 1]).nats for i in range(9)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_all_images_may_be_blank(model):
    blank = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert model.nll(blank, [0, 1]).nats.isfinite().all()
    with torch.no_grad():
        model.gate.output.bias.fill_(-1e4)
    assert [canvas.sum().item() for canvas in model.steps([0, 1], seeds=[0, 1])] == [0]


def test_drawing_with_images_dropped_from_the_cache_is_drawing_them_alone(model):
    """Images of very different length, so that the cache is made smaller on the way."""
    with torch.no_grad():
        model.gate.output.bias.fill_(-2.0)
    seeds = list(range(24))
    together = model.sample([0] * 24, seeds)
    num_inked = (together.unfold(2, 4, 4).unfold(3, 4, 4) > 0).any(-1).any(-1).sum((1, 2, 3))
    assert num_inked.min() < num_inked.max()
    alone = torch.cat([model.sample([0], [seed]) for seed in seeds])
    assert torch.equal(together, alone)


def test_first_ink_is_the_corner_of_each_patch_on_the_canvas():
    patches = torch.zeros(3, 4, 4, dtype=torch.uint8)
    patches[0, 1, 3] = patches[0, 3, 2] = 9
    patches[1, 0, 0] = 1
    start = torch.tensor([[4, 8], [0, 4], [4, 4]])
    assert first_ink(patches.flatten(1), start, edge=28).tolist() == [[5, 10], [0, 4], [28, 28]]


@torch.no_grad()
def test_drawing_knows_the_corner_of_the_ink_so_far(model):
    model.gate.output.bias.fill_(2.0)  # ink in most patches
    sampler = PatchSampler(model, torch.tensor([0]), Noise([0]), Sampling(), None)
    edge = model.config.image_size
    num_canvases = 0
    for canvas in sampler.steps():
        inked = [(canvas[0, 0] > 0).any(dim) for dim in (1, 0)]
        corner = [line.int().argmax().item() if line.any() else edge for line in inked]
        assert sampler.corner_R2[0].tolist() == corner
        num_canvases += 1
    assert num_canvases > 2


def test_built_in_guidance_is_a_share_of_the_way_from_the_null_class_in_training(model):
    guided = replace(model.config, built_in_guidance=2.0, class_drop=0.0).build()
    guided.load_state_dict(model.state_dict())
    images = torch.randint(0, 16, (5, 1, 8, 8), dtype=torch.uint8)
    images *= torch.rand(5, 1, 8, 8) < 0.2
    labels, null = torch.tensor([0, 1, 2, 0, 1]), torch.full((5,), 3)
    picture = guided.lay_out(images)
    own, none = (
        guided.logits(picture, guided.states(picture, guided.classes(cond)))
        for cond in (labels, null)
    )
    between = [(x + y) / 2 for x, y in zip(own, none, strict=True)]
    expected = guided.nats_of(picture, *between).flatten(1).sum(1)
    guided.train()
    loss = guided.loss(images, labels)
    assert guided.training
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert not guided.classes.table.weight.grad[3].any(), "the null class is held fixed"
    guided.eval()
    torch.testing.assert_close(guided.loss(images, labels), model.nll(images, labels).nats)
