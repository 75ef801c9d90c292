"""The family `pixel`, beyond what the contract and the likelihood tests ask of every family."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY, make_spec, moved, random_images

from mnist_transformer.models.pixel import Pixel, PixelConfig
from mnist_transformer.networks.positions import POSITIONS
from mnist_transformer.options import Keep, Sampling
from mnist_transformer.recipes import RECIPES

CONFIG = replace(TINY["pixel"], dim=32)  # heads of 16, which every position scheme takes


def make_model(config: PixelConfig = CONFIG) -> Pixel:
    return moved(config).eval()


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("mnist-pixel-3.5m", 3_480_576),
        ("mnist-pixel-6.9m", 6_872_356),
        ("mnist-pixel-57m", 57_627_136),
    ],
)
def test_sizes_are_those_that_the_recipes_state(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = RECIPES[name].model.build()
    assert model.num_parameters == num_parameters
    assert f"{num_parameters:,} parameters" in RECIPES[name].about


def test_a_pixel_is_told_the_class_and_the_pixels_before_it_alone() -> None:
    model, images = make_model(), random_images(1, levels=16)
    values = images.flatten(1).long()
    with torch.no_grad():
        before = model.logits(values, torch.tensor([0]))
        assert before.shape == (1, 64, 16)
        for t in (0, 1, 30, 63):
            changed = values.clone()
            changed[:, t] = (changed[:, t] + 1) % 16
            touched = (model.logits(changed, torch.tensor([0])) != before).any(-1)[0]
            assert not touched[: t + 1].any()
            assert touched[t + 1 : t + 2].all()
        assert (model.logits(values, torch.tensor([1])) != before).any(-1).all()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_drawing_with_the_cache_is_reading_without_it(positions: str, guidance: float) -> None:
    """The likeliest pixel at every step, drawn through the cache, is that of one full pass."""
    model = make_model(replace(CONFIG, positions=positions))
    how = Sampling(temperature=1e-3, guidance=guidance)
    drawn = model.sample([0, 1, 2], range(3), how).flatten(1).long()
    with torch.no_grad():
        logits = model.logits(drawn, torch.arange(3))
        if guidance != 1:
            null = model.logits(drawn, torch.full((3,), 3))
            logits = null + guidance * (logits - null)
    # Rounding may turn a tie: what was drawn is as likely as the best.
    chosen = logits.gather(-1, drawn[..., None]).squeeze(-1)
    assert (logits.amax(-1) - chosen).max() < 0.05


def test_kept_pixels_are_read_by_the_later_ones() -> None:
    model, images = make_model(), random_images(4, levels=16)
    mask = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    mask[..., :4, :] = True
    drawn = model.sample([0] * 4, range(4), keep=Keep(images, mask))
    other = model.sample([0] * 4, range(4), keep=Keep(15 - images, mask))
    assert torch.equal(drawn[..., :4, :], images[..., :4, :])
    assert not torch.equal(drawn[..., 4:, :], other[..., 4:, :])
    # Given what was drawn above the middle, the same pixels are drawn below it.
    plain = model.sample([0] * 4, range(4))
    kept = model.sample([0] * 4, range(4), Sampling(num_particles=1), Keep(plain, mask))
    assert torch.equal(kept, plain)


def test_a_canvas_is_a_row() -> None:
    canvases = list(make_model().steps([0, 1], range(2)))
    assert len(canvases) == 8
    for row, canvas in enumerate(canvases):
        assert torch.equal(canvas[..., : row + 1, :], canvases[-1][..., : row + 1, :])
        assert not canvas[..., row + 1 :, :].any()


def test_levels_outside_the_vocabulary_are_refused() -> None:
    model, images = make_model(), random_images(1, levels=16)
    images[0, 0, 2, 3] = 16
    with pytest.raises(ValueError, match="a pixel is 16, expected below 16"):
        model.nll(images, [0])
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    model.sample([0], [0], keep=Keep(images, mask))  # what is not kept is not read
    mask[0, 0, 2, 3] = True
    with pytest.raises(ValueError, match="a pixel is 16, expected below 16"):
        model.sample([0], [0], keep=Keep(images, mask))


def test_a_colour_is_drawn_red_then_green_then_blue() -> None:
    model = make_model(replace(CONFIG, data=make_spec(8, 3, levels=16, channels=3)))
    images = torch.randint(0, 16, (1, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        before = model.pixel_nats(images, torch.tensor([0]))
        for channel in range(3):
            changed = images.clone()
            changed[0, channel, 2, 3] = (changed[0, channel, 2, 3] + 1) % 16
            nats = model.pixel_nats(changed, torch.tensor([0]))
            assert torch.equal(nats[0].flatten()[: 2 * 8 + 3], before[0].flatten()[: 2 * 8 + 3])
            assert nats[0, 2, 3] != before[0, 2, 3]
        values = images.permute(0, 2, 3, 1).flatten(1).long()
        logits = model.logits(values, torch.tensor([0])).log_softmax(-1)
    nats = -logits.gather(-1, values[..., None]).view(1, 8, 8, 3).sum(-1)
    torch.testing.assert_close(nats, before)


def test_senseless_sizes_are_refused() -> None:
    large = RECIPES["mnist-pixel-6.9m"].model
    with pytest.raises(ValueError, match="head_dim is 50, expected a multiple of 4"):
        replace(large, positions="axial_rope").build()
