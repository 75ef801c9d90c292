"""What several test files share. Nothing here needs a network or a shipped weight."""

import os
from pathlib import Path

# One thread a test process: the suite runs in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from mnist_transformer import checkpoint
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.models.patch import PatchConfig

TINY = PatchConfig(
    dim=16, depth=1, num_heads=2, mlp_dim=16, head_width=16, head_depth=1, head_mlp_dim=16
)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model that draws 28 x 28 images in no time."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoint.save(TINY.build(), path, recipe="mnist-patch")
    return path


@pytest.fixture(scope="session")
def classifier_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model that does not draw."""
    path = tmp_path_factory.mktemp("classifier") / "reader.safetensors"
    checkpoint.save(ClassifierConfig().build(), path)
    return path


@pytest.fixture
def mnist_folder() -> Path:
    """The folder with all of MNIST; the test is skipped where there is none."""
    folder = os.environ.get("MNIST_TRANSFORMER_DATA")
    if not folder:
        pytest.skip("needs all of MNIST: MNIST_TRANSFORMER_DATA names no folder")
    return Path(folder)
