"""The law of MNIST's grey levels: what it says of m, of levels, and that drawing knows it too."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY, moved

from mnist_transformer.models.patch_law.level_law import DIRECTIONS, TRANSPOSED, LevelLaw, scaling
from mnist_transformer.models.patch_law.sampler import PatchSampler
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.options import Sampling

CELLS_PI = torch.arange(28 * 28).view(7, 4, 7, 4).transpose(1, 2).reshape(49, 16)


@pytest.fixture(scope="module")
def law():
    return LevelLaw(28, 4, 256)


def scan(side: int) -> torch.Tensor:
    """A ring, black and white, of ``side`` x ``side`` pixels."""
    at = torch.arange(side) - (side - 1) / 2
    radius = (at[:, None] ** 2 + at**2).sqrt()
    return ((radius < side / 2) & (radius > side / 3.2)).double()


def scaled(side: int, row: int, column: int) -> torch.Tensor:
    """The ring as MNIST would have it: uint8 (1, 28, 28)."""
    parts = scaling(side, 20)
    areas = 255 * (parts @ scan(side) @ parts.T)
    levels = torch.where(areas > 127.5, (areas + 1e-6).floor(), (areas - 1e-6).ceil())
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[0, row : row + 20, column : column + 20] = levels.to(torch.uint8)
    return image


def test_shared_rows_are_counted_a_hundredth_too_small():
    sums = scaling(36, 20).sum(1)  # 1.8 scanned rows each: every fifth begins with a whole one
    expected = torch.full((20,), 1 - 0.01 * 20 / 36, dtype=torch.float64)
    expected[::5] = 1
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(scaling(40, 20).sum(1), torch.ones(20, dtype=torch.float64))


def test_cells_below_the_diagonal_are_those_above_it_transposed(law):
    """What is in a transposed cell by edges of a direction: that of the transposed direction."""
    chance_CDV = law.chance_CY.unflatten(1, (DIRECTIONS, -1))
    kind_ZYX = law.kind_ZX[:, :-1].unflatten(1, (20, 20))
    above_ZDV, below_ZDV = chance_CDV[kind_ZYX[:, 3, 4]], chance_CDV[kind_ZYX[:, 4, 3]]
    assert torch.equal(above_ZDV[:, TRANSPOSED], below_ZDV)
    assert not torch.equal(above_ZDV, below_ZDV)


@pytest.mark.parametrize(("side", "row", "column"), [(36, 4, 4), (50, 3, 5), (48, 5, 2)])
def test_it_finds_how_an_image_was_scaled(law, side, row, column):
    own_PI = scaled(side, row, column).flatten().long()[CELLS_PI]
    evidence_H = law.evidence(own_PI, torch.arange(49)).sum(0) + law.log_prior_H
    by_side = evidence_H.view(-1, law.num_kinds).softmax(1)
    place, kind = divmod(int(evidence_H.argmax()), law.num_kinds)
    assert law.side_Z[kind] == side
    assert by_side.shape[0] == 36
    num_places = 6
    assert place == (row - 2) * num_places + (column - 2)


def test_levels_that_are_drawn_make_levels_probable(law):
    """After half of a ring with m = 50 few levels are left for the rest."""
    own_PI = scaled(50, 4, 4).flatten().long()[CELLS_PI]
    inked_P = (own_PI > 0).any(1)
    patch_N = inked_P.nonzero().squeeze(1)
    chances_NIDV = law.before(own_PI[patch_N], patch_N, inked_P.sum()[None])
    ones = torch.ones(len(patch_N), 16, DIRECTIONS)
    torch.testing.assert_close(chances_NIDV.sum(-1), ones, atol=1e-3, rtol=0)
    among_grey_NIV = chances_NIDV.mean(2)[..., 1:240].log().log_softmax(-1)
    own_NI = own_PI[patch_N]
    grey_NI = (own_NI > 0) & (own_NI < 240)
    nats_NI = -among_grey_NIV.gather(2, (own_NI - 1).clamp(0, 238)[..., None]).squeeze(2)
    half = len(patch_N) // 2
    assert nats_NI[half:][grey_NI[half:]].mean() < 4  # of log 239 = 5.5
    assert nats_NI[:1][grey_NI[:1]].mean() > 4.5


def test_an_upright_edge_has_fewer_levels_than_a_slanted_one(law):
    """And so has a level one, among the eight directions from upright to upright."""
    kind = law.side_Z.tolist().index(50)
    chance_DV = law.chance_CY[law.kind_ZX[kind, 10 * 20 + 10]].view(DIRECTIONS, -1).float()
    entropy_D = -(chance_DV * chance_DV.log()).sum(1)
    upright_and_level, slanted = entropy_D[[0, 4]], entropy_D[[1, 3, 5, 7]]
    assert upright_and_level.max() < slanted.min() - 0.1


def test_it_sees_what_was_drawn_before_only(law):
    own_PI = scaled(44, 4, 4).flatten().long()[CELLS_PI]
    patch_N = (own_PI > 0).any(1).nonzero().squeeze(1)
    changed_NI = own_PI[patch_N].clone()
    changed_NI[1] = 77
    number = torch.tensor([len(patch_N)])
    one, other = (law.before(own_NI, patch_N, number) for own_NI in (own_PI[patch_N], changed_NI))
    assert torch.equal(one[:2], other[:2])
    assert not torch.equal(one[2], other[2])


def test_a_batch_is_its_images(law):
    images = torch.stack([scaled(44, 4, 4), torch.zeros(1, 28, 28).byte(), scaled(50, 3, 5)])
    own_BPI = images.flatten(1).long()[:, CELLS_PI]
    inked_BP = (own_BPI > 0).any(-1)
    patch_N, number_B = inked_BP.nonzero()[:, 1], inked_BP.sum(1)
    together = law.before(own_BPI[inked_BP], patch_N, number_B)
    alone = [law.before(own_BPI[i][inked_BP[i]], inked_BP[i].nonzero()[:, 0], number_B[i : i + 1])
             for i in (0, 2)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone))


@torch.no_grad()
def test_drawing_knows_the_law(moved_law_model):
    """The sampler's log-probabilities of how a digit was scaled are those of training."""
    model = moved_law_model
    sampler = PatchSampler(model, torch.tensor([0, 1]), Noise([1, 2]), Sampling(), None)
    *_, images = sampler.steps()
    picture = model.lay_out(images)
    own_BPI = picture.values_BPS[..., model.around.num_before :]
    evidence_BPH = model.law.evidence(
        own_BPI.flatten(0, 1), torch.arange(model.num_patches).repeat(len(images))
    ).unflatten(0, (len(images), -1))
    expected = model.law.log_prior_H + (evidence_BPH * picture.inked_BP[..., None]).sum(1)
    assert picture.inked_BP.any()
    torch.testing.assert_close(sampler.law_RH, expected)


@pytest.fixture
def moved_law_model():
    return moved(replace(TINY["patch-law"], law=True)).eval()
