"""The family mar: what a token may see, the order of drawing, any number of steps, kept pixels."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY, make_spec, moved

from mnist_transformer.models.mar import MARConfig
from mnist_transformer.networks.patches import cut
from mnist_transformer.networks.unmasking import known_counts, masks
from mnist_transformer.options import Keep, Sampling

# Nine patches, none of them left blank.
CONFIG = replace(TINY["mar"], data=make_spec(12, 3), blank_gate=False)


def random_model(config: MARConfig = CONFIG):
    return moved(config).eval()


@pytest.fixture(scope="module")
def model():
    return random_model()


def states(model, pixels, known_B, order=None):
    order = torch.arange(model.num_patches) if order is None else order
    with torch.no_grad():
        return model._states(cut(pixels, 4), order[None], known_B[order][None], torch.tensor([1]))[
            0
        ]


def test_unknown_patches_are_not_read(model):
    """Not their pixels, nor that they are asked for; the known ones are."""
    torch.manual_seed(0)
    pixels = torch.rand(1, 1, 12, 12) * 2 - 1
    known = torch.tensor([True, False, True, False, False, True, False, False, False])
    before = states(model, pixels, known)
    for patch in range(9):
        changed = pixels.clone()
        row, column = 4 * (patch // 3), 4 * (patch % 3)
        changed[..., row : row + 4, column : column + 4] *= -1
        after = states(model, changed, known)
        if known[patch]:
            assert ((after - before).abs().amax(1) > 1e-4).all()
        else:
            assert torch.equal(after, before)
    chosen = torch.tensor([5, 0, 2, 7])  # the known ones and one question, in another order
    some = states(model, pixels, known, chosen)
    torch.testing.assert_close(some, before[chosen], atol=1e-5, rtol=1e-4)


def test_masks_cover_all_ratios(model):
    torch.manual_seed(0)
    masked = masks(1000, model.num_patches, 0.0)
    counts = masked.sum(1)
    assert (counts.min(), counts.max()) == (1, 9)
    assert masked.float().mean(0).std() < 0.03  # every patch as often
    high = masks(1000, model.num_patches, 0.7)
    assert high.sum(1).min() == 7


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8, 9])
@pytest.mark.parametrize("num_known", [0, 1, 8, 9])
def test_every_step_draws_and_the_last_one_ends(num_steps, num_known):
    known = torch.arange(9) < num_known
    counts = [int(count) for count in known_counts(known[None], num_steps)]
    sizes = torch.tensor(counts).diff()
    assert (counts[0], counts[-1], len(sizes)) == (num_known, 9, num_steps)
    assert (sizes >= 0).all()
    assert (sizes > 0).sum() == min(num_steps, 9 - num_known)


def test_cosine_draws_few_patches_first():
    counts = known_counts(torch.zeros(1, 49, dtype=torch.bool), 8)
    assert [int(count) for count in counts] == [0, 1, 4, 9, 15, 22, 31, 40, 49]


@pytest.mark.parametrize("num_steps", [1, 4, 9])
def test_a_patch_once_drawn_stays(model, num_steps):
    canvases = list(model.steps([0], [3], Sampling(num_steps=num_steps)))
    assert len(canvases) == num_steps
    patches = [cut(canvas.float(), 4)[0] for canvas in canvases]
    drawn = [(patch > 0).any(1) for patch in patches]
    for earlier, later, known in zip(patches, patches[1:], drawn, strict=False):
        assert torch.equal(later[known], earlier[known])
    assert (patches[-1] > 0).any(1).all()


def test_the_order_differs_between_seeds(model):
    first = [next(model.steps([0], [seed], Sampling(num_steps=9))) for seed in range(8)]
    places = {int(cut(c.float(), 4)[0].sum(1).argmax()) for c in first}
    assert len(places) > 3


def test_too_many_steps_are_refused(model):
    with pytest.raises(ValueError, match="num_steps is 10, expected 1 to 9"):
        model.steps([0], [0], Sampling(num_steps=10))  # at once, before the first step


@pytest.mark.parametrize("sampler", ["ancestral", "euler", "heun"])
def test_a_seed_gives_the_same_image_beside_others_with_more_kept(model, sampler):
    """How many patches are drawn in a step depends on the mask of each image alone."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 1, 12, 12), dtype=torch.uint8)
    mask = torch.zeros(3, 1, 12, 12, dtype=torch.bool)
    mask[1, :, :8] = True  # six patches
    mask[2] = True
    how = Sampling(sampler=sampler, guidance=2.0)
    together = model.sample([0, 1, 2], [0, 1, 2], how, Keep(images, mask))
    for i in range(3):
        alone = model.sample([i], [i], how, Keep(images[i : i + 1], mask[i : i + 1]))
        assert (together[i].int() - alone[0].int()).abs().max() <= 1


def test_whole_kept_patches_are_read_from_the_start(model):
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    mask[..., :4] = True
    white, black = torch.full((1, 1, 12, 12), 255).byte(), torch.zeros(1, 1, 12, 12).byte()
    how = Sampling(num_steps=1)  # one step: what is drawn has seen the kept patches only
    drawn = [model.sample([0], [0], how, Keep(images, mask)) for images in (white, black)]
    assert ((drawn[0] != drawn[1]) & ~mask).any()


def test_temperature_scales_the_noise(model):
    """Near zero it leaves one image a class and order."""
    torch.manual_seed(0)
    labels, seeds = [1] * 16, range(16)
    spread = [
        model.sample(labels, seeds, Sampling(temperature=tau, num_steps=1)).float().std(0).mean()
        for tau in (1e-6, 0.5, 1.0)
    ]
    assert spread[0] < 0.1
    assert spread[0] < spread[1] < spread[2]


def test_guidance_ramps_up(model):
    """The null class is read at every step, and weighs least at the first."""
    plain = next(model.steps([0], [0], Sampling(num_steps=9)))
    first = next(model.steps([0], [0], Sampling(num_steps=9, guidance=1.001)))
    assert (plain.int() - first.int()).abs().max() <= 1
    full = model.sample([0], [0], Sampling(num_steps=1, guidance=3.0))
    assert not torch.equal(full, model.sample([0], [0], Sampling(num_steps=1)))


def test_without_guidance_s_class_is_the_null_class_at_every_step(model):
    """Scale 0 leaves the null class alone; a ramp that began near 1 would begin with the class."""
    drawn = model.sample([1], [0], Sampling(num_steps=9, guidance=0.0))
    assert (drawn.int() - model.sample(None, [0], Sampling(num_steps=9)).int()).abs().max() <= 1


def gated_model(logit: float):
    """A model whose gate does not look: every patch has ink with the same probability."""
    model = random_model(replace(CONFIG, blank_gate=True))
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.fill_(logit)
    return model


def test_the_gate_decides_which_patches_are_blank():
    how = Sampling(num_steps=3)
    assert (gated_model(-50).sample([0] * 4, range(4), how) == 0).all()
    for logit in (0.4, 50.0):
        model = gated_model(logit)
        patches = cut(model.sample([0] * 300, range(300), how).float(), 4)
        share = (patches > 0).any(-1).float().mean().item()
        assert share == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=0.03)


def test_kept_ink_opens_the_gate():
    """A patch that is kept in part has ink if its kept pixels do."""
    images = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    images[..., 0, 0] = 200
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    mask[..., :2, :] = True
    drawn = gated_model(-50).sample([0], [0], Sampling(num_steps=2), Keep(images, mask))
    assert (drawn[..., 2:4, :4] > 0).any()
    assert (drawn[..., 4:, :] == 0).all()


def test_the_head_learns_from_ink_only():
    """Of black images there is the gate's loss alone, and it has a gradient."""
    model = random_model(replace(CONFIG, blank_gate=True)).train()
    torch.manual_seed(0)
    black, labels = torch.zeros(4, 1, 12, 12, dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    model.loss(black, labels).sum().backward()
    assert model.gate.weight.grad.abs().sum() > 0
    assert not any(p.grad is not None and p.grad.any() for p in model.head.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_mask_ratio": 1.0}, r"min_mask_ratio is 1.0, expected a number in \[0, 1\)"),
        ({"data": make_spec(10)}, "image_size is 10, expected a multiple of patch_size 4"),
        ({"sampler": "dpm"}, "sampler is 'dpm', expected one of"),
        ({"margin": -1}, "margin is -1, expected 0 or more"),
        ({"num_steps": 0}, "num_steps is 0, expected 1 or more"),
        ({"num_steps": 10}, "num_steps is 10, expected 1 to 9"),
        ({"prediction": "y"}, "prediction is 'y', expected one of"),
    ],
)
def test_senseless_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
