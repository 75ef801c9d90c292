"""Sets of drawn images: drawn in parts, whatever interrupts, and selected from."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, TINY_PATCH, assert_same_bits, make_digits, make_scans, make_spec, moved

from mnist_transformer import cli
from mnist_transformer.commands import synth
from mnist_transformer.data import Dataset, Split, load_dataset
from mnist_transformer.evaluation import protocol, synthetic
from mnist_transformer.models import checkpoint
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.models.patch.model import PatchConfig
from mnist_transformer.options import Sampling


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four images, an untrained judge, and forty digits to be near to."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    judge = ClassifierConfig(make_spec()).build().eval()
    monkeypatch.setattr(synthetic, "load_judge", lambda spec: judge)
    monkeypatch.setattr(protocol, "load_dataset", lambda *_, **__: make_digits())
    monkeypatch.setattr(synth, "PART", 4)
    checkpoint.save(moved(TINY_PATCH), "tiny.safetensors", recipe="tiny")


def run(words: str) -> int:
    return cli.main(words.split())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


DRAW = "synth --n 30 --model tiny.safetensors --device cpu --out"
FEW = DRAW.replace("30", "12")


def test_a_set_is_balanced_scored_and_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{DRAW} set --seed 7") == 0
    assert capsys.readouterr().out == "saved set\n"
    columns, model = synthetic.load(Path("set")), checkpoint.load("tiny.safetensors")
    labels = torch.arange(30) % 10
    assert torch.equal(columns["label"], labels)
    assert torch.equal(columns["seed"], 7 + torch.arange(30))
    assert torch.equal(columns["image"], model.sample(labels, range(7, 37)))
    nats = model.nll(columns["image"], labels, fitted=True).double()
    torch.testing.assert_close(columns["nats"], nats, rtol=1e-4, atol=1e-4)
    logits = synthetic.load_judge(None).logits(columns["image"])
    expected = logits.softmax(1)[torch.arange(30), labels].double()
    torch.testing.assert_close(columns["probability"], expected, rtol=1e-4, atol=1e-4)
    every = [x.flatten(1).double() / 255 for x in (columns["image"], make_digits().train.images)]
    nearest = torch.cdist(*every).min(1).values.float()
    torch.testing.assert_close(columns["distance"], nearest, rtol=1e-3, atol=1e-3)
    dataset = load_dataset("idx", "set")
    assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [24, 3, 3]
    assert sorted(path.name for path in Path("set").glob("[!.]*")) == [
        "images-idx-ubyte.gz", "labels-idx-ubyte.gz", "scores.safetensors"
    ]  # fmt: skip


def assert_same(a: str, b: str) -> None:
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))
    assert_same_bits(synthetic.load(Path(a)), synthetic.load(Path(b)))


@pytest.mark.parametrize("write", [2, 4, 6])
def test_a_killed_set_goes_on_to_the_same_bytes(write: int, monkeypatch) -> None:
    """Killed at any write: of a part, of the images, of the scores."""
    assert run(f"{FEW} whole") == 0
    replaced, os_replace = [], os.replace

    def dying(*paths: object) -> None:
        replaced.append(paths)
        if len(replaced) == write + 1:  # the first one is of the note
            raise KeyboardInterrupt
        os_replace(*paths)

    monkeypatch.setattr("os.replace", dying)
    assert run(f"{FEW} killed") == 130
    assert not Path("killed/scores.safetensors").exists()
    monkeypatch.setattr("os.replace", os_replace)
    assert run(f"{FEW} killed") == 0
    assert_same("killed", "whole")
    monkeypatch.setattr(synthetic, "drawing", None)
    assert run(f"{FEW} killed") == 0  # it is finished
    assert_same("killed", "whole")


def test_two_processes_share_a_set(tmp_path: Path) -> None:
    assert run(f"{FEW} one") == 0
    script = tmp_path / "launched.py"
    script.write_text(
        "import torch\n"
        "from pathlib import Path\n"
        "from accelerate import PartialState\n"
        "from helpers import make_digits, make_spec\n"
        "from mnist_transformer.commands import synth\n"
        "from mnist_transformer.evaluation import protocol, synthetic\n"
        "from mnist_transformer.models.classifier import ClassifierConfig\n"
        "torch.manual_seed(0)\n"
        "judge = ClassifierConfig(make_spec()).build().eval()\n"
        "synthetic.load_judge = lambda spec: judge\n"
        "protocol.load_dataset = lambda *_, **__: make_digits()\n"
        "synth.PART = 4\n"
        "synth.synth(Path('two'), 12, 'tiny.safetensors')\n"
        "assert PartialState().num_processes == 2\n"
    )
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests)])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0", str(script)]
    environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("saved two") == 1
    assert_same("one", "two")


def test_drawn_scans_give_the_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", make_scans)
    checkpoint.save(moved(TINY["scan"]), "scan.safetensors", recipe="tiny")
    fitting = replace(make_digits(), spec=TINY["scan"].data)
    monkeypatch.setattr(protocol, "load_dataset", lambda *_, **__: fitting)
    assert run("synth --n 12 --model scan.safetensors --out set") == 0
    columns, model = synthetic.load(Path("set")), checkpoint.load("scan.safetensors")
    assert torch.equal(columns["image"], model.sample(torch.arange(12) % 3, range(12)))
    scans = model.scans(columns["label"].tolist(), range(12), Sampling())
    assert torch.equal(scans.images, columns["image"])
    model.archive = scans
    found = model.look_up(columns["image"])
    assert found[0].all()
    nats = model.nll(columns["image"], columns["label"], fitted=True).double()
    torch.testing.assert_close(columns["nats"], nats, rtol=1e-4, atol=1e-4)
    assert run("synth select set --best 10 --by nats --out best") == 0
    assert "ink" not in synthetic.load(Path("best"))


def test_colour_and_a_folder_of_pictures(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("pyarrow")
    spec = replace(make_spec(8, 3, channels=3), name="folder:colours", judge=None)
    images = torch.zeros(12, 3, 8, 8).byte()
    split = Split(images, torch.arange(12) % 3)
    asked = []

    def colours(*name: object, **how: int) -> Dataset:
        asked.append((name, how))
        return Dataset(split, split, split, spec)

    monkeypatch.setattr(protocol, "load_dataset", colours)
    config = PatchConfig(spec, dim=8, depth=1, num_heads=2, mlp_dim=8, gate_width=8, head_width=8)
    checkpoint.save(moved(config), "colour.safetensors", recipe="patch")
    assert run("synth --n 12 --model colour.safetensors --data here --out set") == 0
    assert asked == [(("folder", Path("here")), {"size": 8, "channels": 3})]
    columns, model = synthetic.load(Path("set")), checkpoint.load("colour.safetensors")
    assert torch.equal(columns["image"], model.sample(torch.arange(12) % 3, range(12)))
    assert columns["label"].tolist() == [0, 1, 2] * 4
    assert "probability" not in columns
    assert not list(Path("set").glob("*.gz"))
    assert load_dataset("idx", "set").spec.shape == (3, 8, 8)
    assert run("synth select set --best 10 --by nats --out best") == 0
    assert len(synthetic.load(Path("best"))["image"]) == 10
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert run("synth --n 12 --model colour.safetensors --data here --out other") == 2
    assert "pip install 'mnist-transformer[parquet]'" in capsys.readouterr().err


def test_a_selection_is_balanced_and_says_what_it_drops(capsys) -> None:
    assert run(f"{DRAW} set") == 0
    capsys.readouterr()
    columns, labels = synthetic.load(Path("set")), torch.arange(30) % 10
    for way, compare in (("best", torch.amax), ("worst", torch.amin)):
        assert run(f"synth select set --{way} 10 --by probability --out {way}") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"saved {way}: 10 of 30 images, balanced by class"
        assert any(x.startswith("nats: ") and x.endswith("for the 20 dropped") for x in lines)
        kept = synthetic.load(Path(way))
        assert sorted(kept["label"].tolist()) == list(range(10))
        for label, chance in zip(kept["label"], kept["probability"], strict=True):
            assert chance == compare(columns["probability"][labels == label], 0)
        assert torch.equal(kept["image"], columns["image"][kept["seed"]])
    assert run("synth select set --random 15 --seed 3 --out random") == 0
    assert np.bincount(synthetic.load(Path("random"))["label"]).tolist() == [2] * 5 + [1] * 5
    nats = columns["nats"][labels == 0].min()
    assert nats in columns["nats"][synthetic.select(columns, "best", 10, "nats")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("synth --n 0 --out new", "n is 0, expected 10 or more"),
        ("synth --n 9 --out new", "n is 9, expected 10 or more"),
        ("synth --n 10 --seed -1 --out new", "seed is -1, expected an integer from 0"),
        ("synth --n 10 --model nothing --out new", "unknown model 'nothing'"),
        (f"{DRAW} set --seed 1", "set holds something, expected "),
        (f"{DRAW} files", "files holds mine.txt, expected "),
        ("synth select set --best 10 --by fame --out new", "by is 'fame', expected one of"),
        ("synth select plain --best 10 --by nats --out new", "expected one of distance"),
        ("synth select set --best 31 --by nats --out new", "best is 31, expected 1 to the 30"),
        ("synth select set --random 0 --out new", "random is 0, expected 1 to the 30"),
        ("synth select set --best 3 --out new", "expected --best N --by SCORE"),
        ("synth select set --random 3 --by nats --out new", "or --random N"),
        ("synth select set --best 3 --worst 3 --by nats --out new", "expected --best N"),
        ("synth select files --random 3 --out new", "scores.safetensors does not exist"),
        ("synth select set --random 3 --out plain", "expected random 3 of set by chance, seed 0"),
    ],
)
def test_bad_input_is_one_sentence(words: str, message: str, capsys) -> None:
    Path("files").mkdir()
    Path("files/mine.txt").write_text("mine")
    columns = {"image": torch.zeros(30, 1, 28, 28).byte(), "label": torch.arange(30) % 10}
    columns["distance"] = torch.rand(30)
    synthetic.claim(Path("plain"), "nothing")
    synthetic.save(Path("plain"), [columns])
    synthetic.claim(Path("set"), "something")
    synthetic.save(Path("set"), [columns | {"nats": torch.rand(30)}])
    assert run(words) == 2
    assert message in said(capsys)
    assert not Path("new").exists()
