"""MNIST's program (data/scans.py) and its inverse (data/scan_search.py)."""

import numpy as np
import pytest
import torch

from mnist_transformer.data import scan_file, scan_search, scans


def _by_the_letter(ink: np.ndarray) -> np.ndarray:
    """The levels (20, 20) of a scan (m, m), one addition at a time as the program makes them."""
    shares = scans.weights(len(ink))
    area = np.zeros((20, 20), np.float32)
    for row, column in np.argwhere(ink):
        for r in np.flatnonzero(shares[:, row]):
            for c in np.flatnonzero(shares[:, column]):
                area[r, c] += shares[r, row] * shares[c, column]
    level = area * (np.float32(255) / area.max())
    return np.where(level < 128, 128 - np.floor(128 - level), np.floor(level)).astype(np.uint8)


def _stroke(side: int) -> torch.Tensor:
    """A slanted stroke as a scan (1, side, side)."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    width = side / 9
    return ((row - 1.2 * column + side / 10).abs() < width).byte()[None]


@pytest.mark.parametrize("side", [20, 35, 39, 41, 47, 51, 60, 83, 128])
def test_all_at_once_gives_the_bytes_of_one_addition_at_a_time(side):
    ink = _stroke(side)
    got = scans.to_boxes(ink, torch.tensor([side]))[0].numpy()
    assert (got == _by_the_letter(ink[0].numpy())).all()


def test_scans_of_several_sides_share_a_canvas():
    sides = torch.tensor([28, 41, 66])
    canvas = torch.zeros(3, 71, 71, dtype=torch.uint8)
    for scan, side in zip(canvas, sides.tolist(), strict=True):
        scan[scans.square(side, 71), scans.square(side, 71)] = _stroke(side)[0]
    together = scans.to_images(canvas, sides)
    for image, side in zip(together, sides.tolist(), strict=True):
        assert torch.equal(image, scans.to_images(_stroke(side), torch.tensor([side]))[0])


def test_the_ink_is_centred_by_its_mass():
    scan = torch.zeros(1, 40, 40, dtype=torch.uint8)
    scan[0, :, 14:22] = 1
    image = scans.to_images(scan, torch.tensor([40]))[0, 0]
    columns = image.sum(0).nonzero().ravel()
    assert (columns[0], columns[-1]) == (12, 15)
    assert (scans.to_images(scan * 0, torch.tensor([40])) == 0).all()  # paper stays paper


def test_half_a_pixel_rounds_down():
    boxes = torch.zeros(2, 20, 20, dtype=torch.uint8)
    boxes[:, 8, 8] = 9
    boxes[0, 9, 8] = boxes[1, 8, 9] = 9  # a mean of 8.5
    rows, columns = scans.corner(boxes)
    assert rows.tolist() == [5, 6]
    assert columns.tolist() == [6, 5]


@pytest.mark.parametrize("side", [19, 72, 200])
def test_a_side_outside_the_range_is_one_sentence(side):
    with pytest.raises(ValueError, match=f"side is {side}, expected 20 to 71"):
        scans.to_images(torch.zeros(1, 71, 71, dtype=torch.uint8), torch.tensor([side]))


@pytest.mark.parametrize("side", [29, 41, 50, 58])
def test_a_scan_is_found_that_gives_the_image_back(side):
    pytest.importorskip("ortools")
    image = scans.to_images(_stroke(side), torch.tensor([side]))
    found = scan_search.to_scan(image[0, 0].numpy())
    assert found is not None
    ink = torch.from_numpy(found.astype(np.uint8))[None]
    assert torch.equal(scans.to_images(ink, torch.tensor([len(found)])), image)


@pytest.mark.parametrize("number", [230, 640])  # m = 42, ink missing; m = 36, cut
def test_a_rare_image_of_mnist_has_a_scan(number):
    pytest.importorskip("ortools")
    image = scan_file.load_scans().images[number, 0].numpy()
    assert scan_search.search(image, scan_search.rare(image)) is not None


def test_ink_with_next_to_no_share_in_a_blank_pixel_is_found():
    pytest.importorskip("ortools")
    scan = torch.zeros(1, 35, 35, dtype=torch.uint8)
    scan[0, 7:28, 7:28] = 1
    scan[0, 7:, 15:20] = scan[0, 15:20] = 1
    scan[0, :, 15:20] = 1
    image = scans.to_images(scan, torch.tensor([35]))[0, 0].numpy()
    assert image[image > 0].min() == 1  # the share of row 7 in box row 3
    assert scan_search.search(image, scan_search.rare(image)) is not None


def test_an_image_from_elsewhere_has_no_scan():
    pytest.importorskip("ortools")
    rng = np.random.default_rng(0)
    assert scan_search.to_scan(np.zeros((28, 28), np.uint8)) is None
    noise = np.zeros((28, 28), np.uint8)
    noise[4:24, 4:24] = rng.integers(0, 256, (20, 20))
    assert scan_search.to_scan(noise) is None
    image = scans.to_images(_stroke(41), torch.tensor([41]))[0, 0].numpy()
    assert scan_search.to_scan(image // 2) is None  # no pixel as bright as the program's
