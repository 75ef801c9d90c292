"""Fixtures that several test files share. Nothing here needs a network or a shipped weight."""

import os
from pathlib import Path

# One thread a test process: the suite runs in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCH_COMPILE_DISABLE"] = "1"  # a minute for each tiny model

import pytest
from helpers import TINY_PATCH

from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.models import checkpoint
from mnist_transformer.models.classifier import ClassifierConfig


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model that draws 28 x 28 images in no time."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoint.save(TINY_PATCH.build(), path, recipe="mnist-patch")
    return path


@pytest.fixture(scope="session")
def classifier_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model that does not draw."""
    path = tmp_path_factory.mktemp("classifier") / "judge.safetensors"
    checkpoint.save(ClassifierConfig(MNIST).build(), path)
    return path


@pytest.fixture
def mnist_folder() -> Path:
    """The folder with all of MNIST; the test is skipped where there is none."""
    folder = os.environ.get("MNIST_TRANSFORMER_DATA")
    if not folder:
        pytest.skip("needs all of MNIST: MNIST_TRANSFORMER_DATA names no folder")
    return Path(folder)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
