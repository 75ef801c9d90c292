"""The examples run, learn something in no time, and draw."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import make_digits
from PIL import Image

from examples import patch_minimal


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
