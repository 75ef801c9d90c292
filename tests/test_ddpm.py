"""The family ddpm: steps, samplers, guidance in an interval, kept pixels, the bound."""

from itertools import product

import pytest
import torch
from helpers import TINY, moved

from mnist_transformer.networks.diffusion import to_signed, to_uint8
from mnist_transformer.options import SAMPLERS, Keep, Sampling


@pytest.fixture(scope="module")
def ddpm():
    return moved(TINY["ddpm"]).eval()


def test_grey_levels_survive_scaling():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_signed(levels)), levels)


def test_the_network_starts_at_grey():
    model = TINY["ddpm"].build().eval()
    assert (model.sample([0], [0], Sampling(num_steps=1)) == 128).all()


@pytest.mark.parametrize(
    ("sampler", "num_steps"), [*product(SAMPLERS, [1, 2]), ("ancestral", 1000)]
)
def test_any_number_of_steps_and_sampler(ddpm, sampler, num_steps):
    canvases = list(ddpm.steps([0, 1], [0, 1], Sampling(num_steps=num_steps, sampler=sampler)))
    assert len(canvases) == num_steps


def test_guidance_outside_its_interval_is_none(ddpm):
    """Four steps evaluate t = 1, 3/4, 1/2 and 1/4."""

    def drawn(guidance, *interval):
        how = Sampling(guidance=guidance, guidance_interval=interval or (0.0, 1.0))
        return ddpm.sample([0, 1, 2], [0, 1, 2], how)

    plain, guided = drawn(1.0), drawn(3.0)
    assert torch.equal(drawn(3.0, 0.0, 0.2), plain)
    assert torch.equal(drawn(3.0, 0.2, 1.0), guided)
    inside = drawn(3.0, 0.3, 0.6)
    assert not torch.equal(inside, plain)
    assert not torch.equal(inside, guided)


def test_guidance_evaluates_the_null_class_only_where_it_is_wanted(ddpm):
    rows = []
    handle = ddpm.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    ddpm.sample([0], [0], Sampling(guidance=2.0, guidance_interval=(0.3, 0.8)))
    handle.remove()
    assert rows == [1, 2, 2, 1]


def test_guidance_zero_ignores_the_class(ddpm):
    drawn = [ddpm.sample([label], [0], Sampling(guidance=0.0)) for label in (0, 1)]
    assert (drawn[0].int() - drawn[1].int()).abs().max() <= 1


def test_inpainting_starts_from_what_is_kept(ddpm):
    """The canvases show the kept pixels all along, and what is kept changes the rest."""
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4] = True
    white, black = torch.full((1, 1, 8, 8), 255).byte(), torch.zeros(1, 1, 8, 8).byte()
    canvases = list(ddpm.steps([0], [0], keep=Keep(white, mask)))
    assert all((canvas[mask] == 255).all() for canvas in canvases)
    other = ddpm.sample([0], [0], keep=Keep(black, mask))
    assert not torch.equal(canvases[-1][~mask], other[~mask])


def test_bound_of_an_image_is_its_own(ddpm):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    together = ddpm.nll(images, [0, 1, 2])
    assert ddpm.likelihood == "bound"
    alone = torch.cat([ddpm.nll(images[i : i + 1], [i]) for i in range(3)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dpm"}, "sampler is 'dpm', expected one of ancestral, ddim, euler, heun"),
        ({"guidance_interval": (0.5, 0.5)}, "expected 0 <= low < high <= 1"),
        ({"guidance_interval": (-0.1, 0.5)}, "expected 0 <= low < high <= 1"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_more_steps_than_levels_are_refused(ddpm):
    with pytest.raises(ValueError, match="num_steps is 1001, expected 1 to 1000"):
        ddpm.steps([0], [0], Sampling(num_steps=1001))
