"""A checkpoint tells of its training: typed, from the first ones too."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from helpers import TINY_PATCH

from mnist_transformer.models import checkpoint, loading
from mnist_transformer.training.info import RunInfo, read_info
from tools.ship import ship

INFO = RunInfo(
    recipe="tiny",
    dataset="mnist",
    images_seen=640,
    steps=10,
    seconds=12.5,
    seed=3,
    torch="2.13.0",
    validation="0.6087 bits/dim on 5,000 images",
    validation_bits_per_dim=0.608698,
    curve=((1.5, 64, 0.9), (12.5, 640, 0.6087)),
)
# As written before metadata was typed: every note a string.
OLD = {
    "recipe": "tiny",
    "images": "640",
    "steps": "10",
    "seconds": "12.5",
    "seed": "3",
    "torch": "2.13.0",
    "validation": "0.6087 bits/dim on 5,000 images",
    "validation_bits_per_dim": "0.608698",
    "curve": "[[1.5, 64, 0.9], [12.5, 640, 0.6087]]",
}


def test_notes_come_back_typed(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(TINY_PATCH.build(), path, **asdict(INFO))
    assert read_info(path) == INFO
    ship(path, tmp_path / "shipped")
    assert read_info(tmp_path / "shipped") == INFO


def test_string_notes_are_read_too(tmp_path):
    checkpoint.save(TINY_PATCH.build(), tmp_path / "old", **OLD)
    assert read_info(tmp_path / "old") == replace(INFO, dataset=None)


def test_what_is_not_noted_is_none(tmp_path):
    checkpoint.save(TINY_PATCH.build(), tmp_path / "some.safetensors", validation="12")
    assert read_info(tmp_path / "some.safetensors") == RunInfo("some", validation="12")


@pytest.mark.parametrize(
    "notes", [{"curve": 5}, {"curve": [[1]]}, {"steps": "[" * 99_999}, {"seed": "x"}, {"recipe": 3}]
)
def test_odd_notes_are_one_sentence_or_none(tmp_path, notes):
    checkpoint.save(TINY_PATCH.build(), tmp_path / "odd.safetensors", **notes)
    try:
        assert getattr(read_info(tmp_path / "odd.safetensors"), *notes) is None
    except ValueError as error:
        assert re.search(r"odd\.safetensors has notes .* expected", str(error))  # noqa: PT017


@pytest.mark.parametrize("name", loading.shipped())
def test_shipped_weights_tell_their_training(name):
    info = read_info(loading.find_weights(name))
    assert info.recipe == name
    assert info.steps * 16 <= info.images_seen
    assert info.seconds > 0
    assert info.curve[-1][1] <= info.images_seen
    json.dumps(asdict(info))


def test_it_needs_no_torch():
    script = "import sys, mnist_transformer.training.info; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
