"""Two processes with half of each batch train what one does with the whole of it."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import BARS, BRIGHT_BARS, RECIPE, VQVAE_RECIPE, weights

from mnist_transformer.training import optim, runtime
from mnist_transformer.training.loop import train

# What a loss draws at random for each image, each process draws for itself.
CASES = {
    # Muon enlarges rounding where momentum is nearly singular, as at the start: so that it does
    # not come from that alone, no matrix waits for its turn.
    "patch": (
        replace(RECIPE, model=replace(RECIPE.model, class_drop=0.0), muon_interval=1),
        BARS,
    ),
    "vqvae": (
        replace(VQVAE_RECIPE, model=replace(VQVAE_RECIPE.model, truncate=0.0)),
        BRIGHT_BARS,
    ),
}

LAUNCHED = """
import sys
import torch
from accelerate import PartialState
from mnist_transformer.training import optim, runtime
from mnist_transformer.training.loop import train
from test_processes import CASES

recipe, dataset = CASES["{name}"]
optim.fast_dtype = runtime.fast_dtype = lambda device: torch.float32
train(recipe, sys.argv[1], data=dataset)
assert PartialState().num_processes == 2
"""


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """In bfloat16, where the machine has it, rounding differs with the size of the batch."""
    for module in (optim, runtime):
        monkeypatch.setattr(module, "fast_dtype", lambda device: torch.float32)


def check_two_processes_are_one(name, tmp_path):
    """Same global batch: weights agree to 1e-3 of the largest."""
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED.format(name=name))
    tests = os.path.dirname(os.path.abspath(__file__))
    path = os.pathsep.join([os.path.dirname(tests), tests])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(script), str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr[-2000:]
    recipe, dataset = CASES[name]
    one = train(recipe, tmp_path / "one", data=dataset, device="cpu")
    two = weights(tmp_path / "two" / "model.safetensors")
    for name, tensor in weights(one).items():
        assert torch.allclose(two[name], tensor, rtol=0, atol=1e-3 * float(tensor.abs().max()))


def test_two_processes_train_the_same_model_as_one(tmp_path):
    """After 5 steps; 4e-4 seen."""
    check_two_processes_are_one("patch", tmp_path)


def test_two_processes_train_the_same_codebooks_as_one(tmp_path):
    """K-means, averages and restarts see the whole batch, and the first process draws for all."""
    check_two_processes_are_one("vqvae", tmp_path)
