"""The examples run, learn something in no time, and draw."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import make_digits
from PIL import Image

from examples import bring_your_own_data, patch_minimal
from mnist_transformer import cli
from mnist_transformer.evaluation import ledger


def test_the_minimal_patch_model_learns_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patch_minimal, "load_dataset", lambda name: make_digits())
    monkeypatch.setattr(patch_minimal, "time", SimpleNamespace(monotonic=time.process_time))
    path = tmp_path / "digits.png"
    patch_minimal.main(["--seconds", "3", "--out", str(path)])
    first, *_, last = map(float, re.findall(r"([\d.]+) bits/dim", capsys.readouterr().out))
    assert 7.5 < first < 9
    assert last < first - 0.5
    with Image.open(path) as picture:
        assert picture.size == (280, 84)


@torch.no_grad()
def test_its_factors_are_probabilities_that_look_back_alone() -> None:
    torch.manual_seed(0)
    model, images = patch_minimal.PatchModel(), make_digits(2).train.images
    assert torch.equal(patch_minimal.join(patch_minimal.cut(images)), images)
    patches = patch_minimal.cut(images)
    logits = model.logits(model.states(patches, torch.zeros(2, dtype=torch.long)), patches)
    patches[:, 20, 5] = 200 - patches[:, 20, 5]
    changed = model.logits(model.states(patches, torch.zeros(2, dtype=torch.long)), patches)
    same = torch.isclose(logits, changed, atol=1e-6).flatten(1, 2).all(-1)
    place = 20 * 16 + 5
    assert same[:, : place + 1].all()
    assert not same[:, place + 1 :].any(1).all()


def test_it_is_short() -> None:
    assert len(Path(patch_minimal.__file__).read_text().splitlines()) <= 150


def pictures(folder: Path) -> None:
    for name, level in (("noon", 250), ("night", 20)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            picture = Image.new("RGB", (20, 24), (level, level, 90))
            picture.paste((90, level, 90), (number, 4, number + 8, 12))
            picture.save(folder / name / f"{number}.png")


def test_the_page_on_own_data_runs(own_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of docs/your-own-data.md, for two seconds instead of ten minutes."""
    pictures(Path("pictures"))
    monkeypatch.setattr(ledger, "results_folder", lambda: Path("results").absolute())
    page = Path(__file__).parent.parent / "docs" / "your-own-data.md"
    commands = re.findall(r"^(mnist-transformer|python examples/\S+) (.*)$", page.read_text(), re.M)
    lines = [(program, rest) for program, rest in commands if "# needs" not in rest]
    assert len(lines) == 5
    for program, rest in lines:
        arguments = rest.replace("600", "2").split()
        if program == "mnist-transformer":
            assert cli.main(arguments) == 0
        else:
            bring_your_own_data.main(arguments)
    for path in ("runs/patch/loss.png", "runs/patch/samples.png", "drawn.png", "noon-night.png"):
        with Image.open(path) as picture:
            assert picture.size > (8, 8)
