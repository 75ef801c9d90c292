"""The likelier one of the scans that give an image (data/scan_choice.py)."""

import numpy as np
import pytest
import torch
from helpers import make_scans

from mnist_transformer.data import scan_choice, scan_coder, scan_parts
from mnist_transformer.data.scan_file import load_scans
from mnist_transformer.data.scans import to_images


@pytest.fixture(scope="module")
def scans():
    """Ten scans of each of some sides."""
    archive = load_scans()
    index = [(archive.sides == side).nonzero()[:10, 0] for side in (25, 40, 50, 61)]
    return [archive.square(image) for image in torch.cat(index).tolist()]


def image_of(ink):
    return to_images(torch.from_numpy(ink)[None], torch.tensor([len(ink)]))


def cost(ink, nats):
    return scan_coder.count(ink[None]).ravel() @ nats


def test_a_context_is_the_nearest_pixels_before():
    assert scan_coder.NEIGHBOURS[:4] == [(-1, 0), (0, -1), (-1, -1), (-1, 1)]
    ink = np.zeros((1, 2, 2), np.uint8)
    ink[0, 0, 0] = 1
    paper, inked = scan_coder.count(ink)
    assert paper.nonzero()[0].tolist() == [1, 2, 4]  # below, beside and across from the ink
    assert inked.nonzero()[0].tolist() == [0]


def test_counts_are_frequencies():
    nats = scan_choice.count([np.array([1, 1, 1, 0], np.uint8)[:, None, None]]).reshape(2, -1)
    assert np.exp(-nats[:, 0]).tolist() == pytest.approx([1.4 / 4.8, 3.4 / 4.8])
    assert np.exp(-nats[:, 1]).tolist() == pytest.approx([0.5, 0.5])


def test_the_image_stays_and_the_scan_becomes_likelier(scans):
    nats = scan_choice.count(scan[None] for scan in scans)
    # The package's scans have been chosen, so unlikely ones are made of them first.
    scans = [scan_choice.likelier(ink, -nats) for ink in scans]
    chosen = [scan_choice.likelier(ink, nats) for ink in scans]
    for before, after in zip(scans, chosen, strict=True):
        assert torch.equal(image_of(before), image_of(after))
        assert before.sum() == after.sum()
        assert cost(after, nats) <= cost(before, nats)
    assert sum(not np.array_equal(*pair) for pair in zip(scans, chosen, strict=True)) > 10


def test_gains_are_differences_of_cost(scans):
    nats = scan_choice.count(scan[None] for scan in scans)
    for ink in scans[::7]:
        pairs = scan_choice._pairs(ink)
        gains = scan_choice._gains(ink, pairs, nats)
        for pair, gain in list(zip(pairs, gains, strict=True))[::97]:
            traded = ink.copy()
            traded[tuple(pair.T)] ^= 1
            assert cost(ink, nats) - cost(traded, nats) == pytest.approx(gain)


def test_parts_that_are_there_are_used(tmp_path, monkeypatch):
    said = []
    few = make_scans()

    def choose():
        return scan_parts.choose(few, 4, tmp_path, lambda *told: said.append(told))

    ink = choose()
    assert said == [("choosing scans", 0, 6), ("choosing scans", 6, 6)]
    part = tmp_path / "chosen-000.safetensors"
    written = part.stat().st_mtime_ns
    assert np.array_equal(choose(), ink)
    assert part.stat().st_mtime_ns == written
    part.write_bytes(b"no part")
    assert np.array_equal(choose(), ink)
