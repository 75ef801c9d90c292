"""Devices: their order, and every family on one that, like Apple's GPU, has no float64."""

from dataclasses import replace

import pytest
import torch
from helpers import BARS, RECIPE, TINY, make_scans, make_spec, make_teacher, moved, weights
from stub_device import MPS, OnStub, stub_device

from mnist_transformer.models import FAMILIES
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.models.flash import Flash
from mnist_transformer.models.reader import ReaderConfig
from mnist_transformer.models.scan import ScanConfig
from mnist_transformer.training import optim
from mnist_transformer.training.info import read_info
from mnist_transformer.training.loop import train
from mnist_transformer.utils import devices

READER = ReaderConfig(
    make_spec(), state_dim=8, dim=16, depth=1, num_heads=2, mlp_dim=16, dropout=0.0
)
CASES = {
    **TINY,
    "patch with guidance": replace(TINY["patch"], built_in_guidance=1.7),
    "vqvae": TINY["var"].tokenizer,
    "classifier": ClassifierConfig(make_spec(8, 3), width=4),
    "reader": READER,
}


@pytest.mark.parametrize(
    ("cuda", "mps", "found"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_best_device_that_is_here(monkeypatch, cuda, mps, found):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device) or torch.ones(1))
    devices.find_device()
    devices.find_device("cuda:1")
    assert asked == [found, "cuda:1"]


def test_the_stub_refuses_what_the_device_would():
    with stub_device():
        x = torch.ones(3, device="mps")
        assert x.device == MPS
        assert (2 * x).sum().item() == 6
        with pytest.raises(AssertionError, match="no float64"):
            x.double()
        with pytest.raises(AssertionError, match="mixes devices"):
            x + torch.ones(3)
    assert type(x) is OnStub


def test_every_family_is_here():
    assert {name for name in FAMILIES if name not in CASES} == set()


def batch_of(config):
    if config is READER:
        return torch.randn(3, 9, 8), torch.tensor([[3, 10], [7, 2], [10, -100]])
    if isinstance(config, ScanConfig):
        return make_scans().images[:3], torch.arange(3)
    return torch.randint(0, 16, (3, 1, 8, 8), dtype=torch.uint8), torch.arange(3)


@pytest.mark.parametrize("name", CASES)
def test_every_family_without_float64(name, monkeypatch):
    """Training, likelihood, figures and drawing, with the figures and pictures of the CPU."""
    monkeypatch.setattr(devices, "fast_dtype", lambda device: torch.float32)
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", make_scans)
    if name == "flash":
        teacher = make_teacher(CASES[name].data)
        monkeypatch.setattr(Flash, "teacher", property(lambda model: teacher.to(model.device)))
    model = moved(CASES[name])
    images, cond = batch_of(CASES[name])
    draws = isinstance(model, GenerativeModel)

    def measure():
        model.eval()
        torch.manual_seed(1)
        with torch.no_grad():
            found = [model.loss(images.to(model.device), cond.to(model.device)).cpu()]
            if model.likelihood is not None:
                found.append(model.nll(images, cond).cpu())
        return found, model.figures(images, cond), model.sample([0, 1], [0, 1]) if draws else None

    there, figures, drawn = measure()
    with stub_device():
        model.to("mps")
        assert model.device == MPS
        here, figures_here, drawn_here = measure()
        optimizers = optim.build_optimizers(model.train(), RECIPE)
        for _ in range(2):
            model.loss(images.to("mps"), cond.to("mps")).mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert figures == pytest.approx(figures_here)
    if draws:
        assert (drawn.int() - drawn_here.int()).abs().max() <= 1


def test_a_run_without_float64(tmp_path):
    """With its validation, its pictures, and a state to go on from."""
    with stub_device():
        train(RECIPE, tmp_path, data=BARS, device="mps", epochs=1)
        path = train(RECIPE, tmp_path, data=BARS, device="mps")
    assert (tmp_path / "samples.png").exists()
    info = read_info(path)
    assert info.steps == 5
    assert info.validation_bits_per_dim > 0
    assert all(tensor.isfinite().all() for tensor in weights(path).values())


def test_random_numbers_of_the_device_go_on_as_they_were():
    with stub_device():
        torch.manual_seed(0)
        before = torch.mps.get_rng_state()
        with devices.fork_rng(MPS):
            torch.rand(1)
        assert torch.equal(before, torch.mps.get_rng_state())
