"""Promises of the patch model with the law beyond the contract: blank patches, batches."""

from dataclasses import replace

import pytest
import torch
from helpers import SPACES, TINY, moved, random_model

from mnist_transformer.models.patch_law import sampler as patch_sampler
from mnist_transformer.models.patch_law.head import first_ink
from mnist_transformer.models.patch_law.sampler import PatchSampler
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.options import Sampling


@pytest.fixture
def model():
    return moved(replace(TINY["patch-law"], law=True)).eval()


def test_likelihood_of_an_image_does_not_depend_on_its_batch(model):
    images = torch.randint(0, 16, (9, 1, 8, 8), dtype=torch.uint8)
    images *= torch.rand(9, 1, 8, 8) < torch.linspace(0, 0.3, 9)[:, None, None, None]
    labels = torch.arange(9) % 3
    together = model.nll(images, labels)
    alone = [model.nll(images[i : i + 1], labels[i : i + 1]) for i in range(9)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_all_images_may_be_blank(model):
    blank = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert model.nll(blank, [0, 1]).isfinite().all()
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


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.8, top_k=5, guidance=2.0)])
def test_pixels_drawn_from_guesses_are_those_drawn_one_by_one(model, how, monkeypatch):
    seeds, labels = range(40), [seed % 3 for seed in range(40)]
    one_by_one = model.sample(labels, seeds, how)
    assert one_by_one.unique().numel() > 5
    monkeypatch.setattr(patch_sampler, "FEW", 100)
    assert torch.equal(model.sample(labels, seeds, how), one_by_one)


def test_few_digits_are_drawn_in_fewer_passes(model, monkeypatch):
    passes = []
    logits = model.head.logits
    monkeypatch.setattr(model.head, "logits", lambda *a: passes.append(few) or logits(*a))
    for few in (0, 2):
        monkeypatch.setattr(patch_sampler, "FEW", few)
        for seed in range(10):
            model.sample([1], [seed])
    assert passes.count(2) < 0.9 * passes.count(0)


def test_what_a_pixel_sees_is_the_same_by_rows_and_by_product(model):
    around = torch.randint(0, 17, (5, len(model.around.slots)))  # 16 is outside
    sampler = PatchSampler(model, torch.zeros(1).long(), Noise([0]), Sampling(), None)
    before, own = around.split([model.around.num_before, model.around.num_own], 1)
    seen = sampler._look(before, sampler.before_IS) + sampler._look(own, sampler.own_II)
    weight = model.head.window_weight().flatten(2).flatten(0, 1)
    torch.testing.assert_close(seen.flatten(1), model.around.embed(around) @ weight)


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
    torch.testing.assert_close(guided.loss(images, labels), model.nll(images, labels))


def test_the_future_does_not_change_an_earlier_patch():
    """Changing the last patch leaves the likelihood of the patches before it as it was."""
    config = SPACES["four patches of four pixels"]
    model = random_model(config)
    torch.manual_seed(0)
    images = torch.randint(0, 2, (1, 1, 4, 4), dtype=torch.uint8)
    values = model.around.values(model.around.pad(images))
    changed = images.clone()
    changed[..., 2:, 2:] = 1 - changed[..., 2:, 2:]
    other = model.around.values(model.around.pad(changed))
    num_before = model.around.num_before
    assert torch.equal(values[..., :num_before], other[..., :num_before])
    weight = model.head.window_weight()  # (S, I, ...): pixel i must not read slots i and later
    for i in range(4):
        assert weight[num_before + i :, :, i].abs().max() == 0
        assert i == 0 or weight[num_before : num_before + i, :, i].abs().sum() > 0
