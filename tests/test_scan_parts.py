"""The recovery of scans in parts (data/scan_parts.py) and the verb `scans`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_transformer import cli
from mnist_transformer.data import mnist, scan_file, scan_parts, scans
from mnist_transformer.data.dataset import Split
from mnist_transformer.utils import trees

pytestmark = pytest.mark.usefixtures("own_folder")
BUILD = ["scans", "build", "--out", "scans"]


def stroke(side: int) -> torch.Tensor:
    """A bar as a scan (1, side, side)."""
    scan = torch.zeros(1, side, side, dtype=torch.uint8)
    scan[0, :, side // 3 : side // 2] = 1
    return scan


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Five images, the last of them without a scan; ``mnist`` has them and parts of two."""
    made = [scans.to_images(stroke(side), torch.tensor([side])) for side in (29, 41, 44, 35)]
    noise = torch.randint(1, 256, (1, 1, 28, 28), dtype=torch.uint8)
    images = torch.cat([*made, noise])
    train = Split(images[:3], torch.tensor([1, 1, 7]))
    test = Split(images[3:], torch.tensor([1, 0]))
    monkeypatch.setattr(mnist, "read", lambda folder=None: (train, test))
    monkeypatch.setattr(scan_parts, "PART", 2)
    monkeypatch.setattr("pooch.os_cache", lambda project: Path("cache"))
    return images


@pytest.fixture
def cannot_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)


def save_part(number: int, *inks: torch.Tensor | None) -> Path:
    """A part with these scans, as an interrupted run leaves it."""
    path = Path("scans") / f"part-{number:03}.safetensors"
    sides = [0 if ink is None else ink.shape[-1] for ink in inks]
    packed = [np.packbits(ink.numpy()) for ink in inks if ink is not None]
    ink = np.concatenate([np.zeros(0, np.uint8), *packed])
    part = {"sides": torch.tensor(sides, dtype=torch.uint8), "ink": torch.from_numpy(ink)}
    trees.save_state(path, part)
    return path


def test_build_goes_on_after_a_kill(images: torch.Tensor, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("ortools")
    finished = save_part(0, stroke(29), stroke(41))
    (Path("scans") / ".part-001.safetensors.17").write_bytes(b"half of a par")
    before = finished.read_bytes()
    assert cli.main(BUILD) == 0
    assert "saved scans/mnist.scans: 4 of 5 images as scans" in capsys.readouterr().out
    assert finished.read_bytes() == before
    made = scan_file.read(Path("scans/mnist.scans"))
    assert torch.equal(made.images, images)
    assert made.labels.tolist() == [1, 1, 7, 1, 0]
    assert made.sides.tolist()[:2] == [29, 41]
    assert (made.sides > 0).tolist() == [True, True, True, True, False]


def test_finished_parts_need_no_search(images: torch.Tensor, cannot_search: None):
    save_part(0, stroke(29), stroke(41))
    save_part(1, stroke(44), stroke(35))
    save_part(2, None)
    assert cli.main(BUILD) == 0
    assert torch.equal(scan_file.read(Path("scans/mnist.scans")).images, images)


def test_without_ortools_build_is_one_sentence(
    images: torch.Tensor, cannot_search: None, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(BUILD) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'mnist-transformer[scans]'" in line


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>"),
        lambda path: np.savez(path.open("wb"), sides=np.zeros(2, np.uint8)),
        lambda path: trees.save_state(path, {"ink": torch.zeros(0)}),
        lambda path: trees.save_state(path, {"sides": torch.zeros(1), "ink": torch.zeros(0)}),
    ],
)
def test_a_damaged_part_is_one_sentence(
    damage, images: torch.Tensor, cannot_search: None, capsys: pytest.CaptureFixture[str]
):
    damage(save_part(1, stroke(44), stroke(35)))
    assert cli.main(BUILD) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "scans/part-001.safetensors is damaged, or a part of other images" in line


def test_verify(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ink = np.concatenate([np.packbits(stroke(side).numpy()) for side in (29, 41, 44)])
    sides, labels = torch.tensor([29, 41, 44, 0, 0]), torch.tensor([1, 1, 7, 1, 0])
    packaged = scan_file.Scans(sides, labels, images[3:], ink)
    monkeypatch.setattr(scan_file, "load_scans", lambda: packaged)
    assert cli.main(["scans", "verify"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["training", "3", "3", "0", "0"], ["test", "2", "0", "2", "0"]]
    images[1, 0, 3, 3] += 1  # the reader's files are not the package's
    labels[4] = 5
    assert cli.main(["scans", "verify"]) == 2
    output = capsys.readouterr()
    assert [line.split()[-1] for line in output.out.splitlines()[1:]] == ["1", "1"]
    assert "2 images or their labels differ" in output.err


def test_verify_without_the_file_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(scan_file, "PACKAGED", Path("mnist.scans"))
    scan_file.load_scans.cache_clear()
    assert cli.main(["scans", "verify"]) == 2
    assert "mnist.scans: No such file" in capsys.readouterr().err
    scan_file.load_scans.cache_clear()
