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
from mnist_transformer.training.state import find_states

# Each process draws its own random numbers in the loss, so these models draw none.
CASES = {
    # Muon enlarges rounding where momentum is nearly singular, as at the start: so that it does
    # not come from that alone, no matrix waits for its turn.
    "patch": (
        replace(RECIPE, model=replace(RECIPE.model, class_drop=0.0), muon_interval=1),
        BARS,
    ),
    "vqvae": (
        replace(VQVAE_RECIPE, model=replace(VQVAE_RECIPE.model, truncated_share=0.0)),
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

LOST = """
import os, signal, sys
from mnist_transformer.training import loop
from mnist_transformer.utils.terminal import exit_code
from test_processes import CASES

backward, loop.SAVE_SECONDS = loop._Run.backward, 0

def dying(run):
    if run.state.step == 2 and run.accelerator.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(run)

loop._Run.backward = dying
recipe, dataset = CASES["patch"]
sys.exit(exit_code("train", lambda: loop.train(recipe, sys.argv[1], data=dataset)))
"""


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """In bfloat16, where the machine has it, rounding differs with the size of the batch."""
    for module in (optim, runtime):
        monkeypatch.setattr(module, "fast_dtype", lambda device: torch.float32)


def launch(script, folder):
    """Run a script's text in two processes, which train in ``folder``."""
    path = folder.parent / "launched.py"
    path.write_text(script)
    tests = os.path.dirname(os.path.abspath(__file__))
    places = os.pathsep.join([os.path.dirname(tests), tests])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    return subprocess.run(
        [*command, str(path), str(folder)],
        env={**os.environ, "PYTHONPATH": places, "ACCELERATE_USE_CPU": "1"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=170,
    )


def check_two_processes_are_one(name, tmp_path):
    """Same global batch: weights agree to 1e-3 of the largest."""
    done = launch(LAUNCHED.format(name=name), tmp_path / "two")
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


def test_a_lost_process_ends_the_run_in_a_sentence(tmp_path):
    done = launch(LOST, tmp_path / "two")
    assert done.returncode
    told = [line for line in done.stderr.splitlines() if line.startswith("train: a process failed")]
    assert len(told) == 1
    assert told[0].endswith("the same command resumes from the last state")
    assert find_states(tmp_path / "two")[0].name == "state-000000002.safetensors"
