"""The public names: what each takes and gives, and how cheap the package is to import."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import BARS, RECIPE, make_digits, make_spec

import mnist_transformer
from mnist_transformer import Keep, Sampling, evaluate, load, load_dataset, sample, train
from mnist_transformer.evaluation import protocol
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.recipes import RECIPES
from mnist_transformer.utils import classes

ROOT = Path(__file__).parent.parent


def test_importing_the_package_is_cheap() -> None:
    script = (
        "import sys, time\n"
        "start = time.process_time()\n"
        "import mnist_transformer, mnist_transformer.options\n"
        "assert time.process_time() - start < 0.1\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_every_public_name_is_there() -> None:
    for name in mnist_transformer.__all__:
        assert getattr(mnist_transformer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mnist_transformer.nonsense


def test_sample_takes_names_of_models_and_classes(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint, "cpu")
    drawn = sample([3, 1, 4], model=tiny_checkpoint, device="cpu")
    assert drawn.shape == (3, 1, 28, 28)
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn, model.sample([3, 1, 4], range(3)))
    assert torch.equal(drawn, sample(["3", 1, "4"], model=model))
    assert torch.equal(drawn, sample("314", model=model, device="cpu"))
    assert torch.equal(drawn, sample(torch.tensor([3, 1, 4]), model=model, seeds=[0, 1, 2]))
    with pytest.raises(ValueError, match="there is no class 'cat'; nearest: 0, 1"):
        sample(["cat"], model=model)
    with pytest.raises(ValueError, match="cond and seeds are both None"):
        sample(None, model=model)


def test_sample_takes_options_and_pixels_to_keep(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint, "cpu")
    how, seeds = Sampling(guidance=2.0), [5]
    assert torch.equal(
        sample([7], model=model, seeds=seeds, how=how), model.sample([7], seeds, how)
    )
    keep = Keep(torch.full((1, 1, 28, 28), 9, dtype=torch.uint8), torch.ones(1, 1, 28, 28) > 0)
    assert torch.equal(sample(None, model=model, seeds=seeds, keep=keep), keep.images)


def test_every_option_is_explained() -> None:
    assert Sampling.__doc__
    for option in ("temperature", "guidance_interval", "num_particles"):
        assert f"        {option}: " in Sampling.__doc__


def test_train_takes_a_recipe_or_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = replace(RECIPE, epochs=1)
    assert train(short, data=BARS, device="cpu") == Path("runs/tiny/model.safetensors")
    monkeypatch.setitem(RECIPES, "tiny", short)
    weights = train("tiny", tmp_path / "run", data=BARS, device="cpu")
    assert weights == tmp_path / "run" / "model.safetensors"
    with pytest.raises(ValueError, match="there is no recipe 'mnist-pach'; nearest: mnist-patch"):
        train("mnist-pach")


def test_evaluate_takes_a_model_or_its_name(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = ClassifierConfig(make_spec()).build()
    monkeypatch.setattr(protocol, "load_judge", lambda spec: judge)
    monkeypatch.setattr(protocol, "sampling_speed", lambda *_, **__: 1.0)
    few = protocol.Samples(20, seeds=(0,), guidances=(1.0,))
    metrics = evaluate(tiny_checkpoint, make_digits(), few, device="cpu")
    assert metrics["bits_per_dim"] > 0
    assert metrics["throughput"]["images_per_second"] > 0
    again = evaluate(load(tiny_checkpoint, "cpu"), make_digits(), few)
    assert again["bits_per_dim"] == metrics["bits_per_dim"]
    assert "throughput" not in again  # of no recipe


def test_load_dataset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest: mnist"):
        load_dataset("mnst")


@pytest.mark.parametrize(
    ("text", "names", "labels"),
    [
        ("2026", classes.DIGITS, [2, 0, 2, 6]),
        ("cat", ("cat", "dog"), [0]),
        ("dog, cat", ("cat", "dog"), [1, 0]),
    ],
)
def test_texts_name_classes(text: str, names: tuple[str, ...], labels: list[int]) -> None:
    assert classes.classes_of(text, names) == labels
