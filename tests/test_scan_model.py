"""A model of MNIST's scans (models/scan.py), beside what every family promises."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import TINY, make_scans, make_spec, moved
from torch.nn import functional as F

from mnist_transformer.data import scans
from mnist_transformer.models.scan import TURNS
from mnist_transformer.options import Keep, Sampling


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", make_scans)
    return moved(TINY["scan"]).eval()


def test_the_bound_adds_the_escape_the_side_and_the_scan(model):
    images, labels = make_scans().images, torch.arange(6) % 3
    canvas, sides = make_scans().canvas(torch.arange(6), 24)[:, None], make_scans().sides
    with torch.no_grad():
        side = F.cross_entropy(model.side(labels), sides - 20, reduction="none")
        scan = model.patch.nats(canvas, model.sided(labels, sides))
        expected = side + scan - math.log(1 - model.config.escape_share)
        torch.testing.assert_close(model.nll(images, labels), expected)


def test_an_image_without_a_scan_is_coded_by_the_escape(model):
    images = make_scans().images[:2]
    images[0, 0, 14, 14] ^= 1
    with torch.no_grad():
        other = model.escape.nll(images[:1], [1]) - math.log(model.config.escape_share)
        found = model.nll(images, [1, 1])
        torch.testing.assert_close(found[:1], other)
        torch.testing.assert_close(found[1:], model.nll(images[1:], [1]))
        assert (model.loss(images, torch.tensor([1, 1])) > 0).tolist() == [False, True]


def test_the_escape_is_loaded_amid_a_validation(model):
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rounded = model.nll(images, [0])
    torch.testing.assert_close(rounded, model.nll(images, [0]), rtol=0.03, atol=0)


def test_a_scan_that_the_canvas_cannot_hold_counts_as_none(monkeypatch):
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", make_scans)
    scan = TINY["scan"].scan
    scan = replace(scan, data=replace(scan.data, shape=(1, 22, 22)), patch_size=11)
    model = replace(TINY["scan"], scan=scan).build()
    assert model.look_up(make_scans().images)[0].tolist() == [True] * 3 + [False] * 3


def test_training_turns_some_scans_and_says_how(model):
    """Each way is undone by the same steps in reverse; evaluation turns none."""
    model.config = replace(TINY["scan"], turned=0.9)
    scan = make_scans().canvas(torch.zeros(200, dtype=torch.long) + 3, 24)[:, None]
    sided = model.sided(torch.arange(200) % 3, torch.full((200,), 23))
    assert model.turn(scan, sided) == (scan, sided)
    model.train()
    turned, conditions = model.turn(scan, sided)
    assert torch.equal(conditions[:, :2], sided[:, :2])
    assert conditions[:, 2].unique().tolist() == list(range(8))
    for image, way in zip(turned, conditions[:, 2].tolist(), strict=True):
        back = image[None]
        for bit in (2, 1, 0):
            back = TURNS[bit](back) if way >> bit & 1 else back
        assert torch.equal(back[0], scan[0])


def test_a_drawn_image_is_a_function_of_its_scan(model):
    """The last canvas has the program's bytes: a brightest pixel, and a centre of mass."""
    drawn = model.sample([0, 1, 2, 0], range(4))
    assert (drawn.amax((1, 2, 3)) >= 254).all()
    index = torch.arange(28.0)
    ink = drawn[:, 0].float()
    for axis in (1, 2):
        middle = (ink.sum(3 - axis) * index).sum(1) / ink.sum((1, 2))
        assert ((middle - 14).abs() <= 0.5).all()


def test_only_scanned_pixels_with_a_share_in_the_hole_are_drawn():
    sides = torch.tensor([24])
    corner = torch.tensor([4])
    mask = torch.ones(1, 28, 28, dtype=torch.bool)
    assert scans.kept(mask, sides, corner, corner, 24).all()
    mask[:, 14:] = False
    kept = scans.kept(mask, sides, corner, corner, 24)[0]
    assert kept[:12].all()  # half of 24 rows, which half of 20 rows cover
    assert not kept[12:].any()


def test_a_hole_is_drawn_on_the_scan_of_the_rest(model):
    images = make_scans().images
    mask = torch.ones(6, 1, 28, 28, dtype=torch.bool)
    mask[..., 14:, :] = False
    drawn = model.sample([0] * 6, range(6), Sampling(num_particles=2), Keep(images, mask))
    assert torch.equal(drawn[:, :, :14], images[:, :, :14])
    assert torch.equal(
        model.sample([0] * 6, range(6), keep=Keep(images, torch.ones_like(mask))), images
    )


def test_a_picture_from_elsewhere_gets_an_approximate_scan():
    images = make_scans().images[:, 0]
    ink, sides, row, column = scans.enlarge(images, 88)
    again = scans.place(scans.to_boxes(ink, sides), row, column)
    error = (again[:, 0].float() - images.float()).abs().mean()
    assert error < images.float().mean() / 5
    paper = scans.enlarge(torch.zeros(1, 28, 28, dtype=torch.uint8), 88)[0]
    assert not paper.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"escape_share": 0.0}, r"escape_share is 0.0, expected one in \(0, 1\)"),
        ({"turned": 1.0}, r"turned is 1.0, expected a number in \[0, 1\)"),
        ({"data": make_spec(8, 3)}, r"images are \(1, 8, 8\), expected MNIST's"),
        (
            {"scan": replace(TINY["patch"], data=make_spec(8, 3, levels=2))},
            "scans are 8 wide, expected 20 or more",
        ),
    ],
)
def test_senseless_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY["scan"], **change)


def test_the_scans_of_a_drawing_give_its_images(model):
    drawn = model.sample([0, 1, 2], [5, 6, 7], Sampling(temperature=0.9))
    again = model.scans([0, 1, 2], iter([5, 6, 7]), Sampling(temperature=0.9))
    assert torch.equal(again.images, drawn)
    with pytest.raises(ValueError, match="a SidedPatch draws no scans"):
        model.patch.scans([0], [0], Sampling())
