"""The experiments' own parts, and each script once on almost nothing: it resumes and plots."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import (
    TINY,
    TINY_PATCH,
    TINY_PROMPTED,
    make_digits,
    make_scans,
    make_spec,
    random_model,
)

from experiments import (
    attention,
    changes,
    common,
    compress,
    diffusion,
    diffusion_steps,
    inpainting,
    patch_general,
    pixel_sizes,
    positions,
    prompting,
    synthetic,
)
from mnist_transformer.commands.synth import synth
from mnist_transformer.data import Dataset, Split, idx
from mnist_transformer.data.mnist import SCANS
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation import protocol as evaluate
from mnist_transformer.models import checkpoint
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.models.pixel import PixelConfig
from mnist_transformer.models.scan import ScanConfig
from mnist_transformer.recipes import RECIPES
from tools import report, trials


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few images, an untrained judge, tiny models, and an empty ledger; its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ledger, "results_folder", lambda: tmp_path / "results")
    monkeypatch.setattr(evaluate, "load_judge", lambda spec: ClassifierConfig(spec).build())
    tiny = replace(RECIPES["mnist-patch"], model=TINY_PATCH, batch_size=16)
    monkeypatch.setitem(RECIPES, "mnist-patch", tiny)
    for name in ("ddpm", "mar"):
        model = replace(TINY[name], data=replace(MNIST, num_levels=TINY[name].data.num_levels))
        recipe = replace(RECIPES[f"mnist-{name}"], model=model, batch_size=16)
        monkeypatch.setitem(RECIPES, recipe.name, recipe)
    for module in (
        *(changes, compress, diffusion, diffusion_steps, inpainting),
        *(patch_general, pixel_sizes, positions, prompting),
    ):
        monkeypatch.setattr(module, "load_dataset", lambda name, folder: make_digits())
    for module in (changes, common):
        monkeypatch.setattr(module, "sampling_speed", lambda model, batch_size, repeats=3: 1.0)
    return tmp_path / "results" / "ledger.jsonl"


def test_slant_is_the_angle_of_a_sheared_bar() -> None:
    images = torch.zeros(4, 1, 21, 21, dtype=torch.uint8)
    for y in range(3, 18):
        images[0, 0, y, 10] = 200  # upright
        images[1, 0, y, 20 - y] = 200  # leans to the right by 45 degrees, as a slash does
        images[2, 0, y, y] = 200
    images[3, 0, 5] = 255  # a single row: no slant to speak of
    torch.testing.assert_close(
        positions.slant(images), torch.tensor([0.0, 45.0, -45.0], dtype=torch.float64)
    )


def test_half_size_is_the_mean_of_four_pixels() -> None:
    dataset = make_digits(2)
    small = common.half_size(dataset).test
    assert small.images.shape == (2, 1, 14, 14)
    assert small.images.dtype == torch.uint8
    corner = dataset.test.images[0, 0, 10:12, 8:10].float().mean().round()
    assert small.images[0, 0, 5, 4] == corner


def run_twice(script: Callable[[], None], path: Path) -> list[ledger.Row]:
    """The rows that a script leaves; run again, it adds none and draws its plot anew."""
    script()
    rows = ledger.rows(path)
    script()
    assert ledger.rows(path) == rows
    (plot,) = path.parent.glob("*/plot.png")
    assert plot.read_bytes().startswith(b"\x89PNG")
    experiment = plot.parent.name
    assert report.make_table(experiment, ledger.latest(path)).count("\n") >= 3
    return rows


def test_attention(small_world: Path) -> None:
    def script() -> None:
        attention.main(tokens=(4, 7), tokens_a_batch=16, head_dim=8, seconds=0.01)

    rows = run_twice(script, small_world)
    float32 = [r for r in rows if r["metrics"]["settings"]["dtype"] == "float32"]
    assert len(float32) == 2 * 2 * 2
    assert all(r["metrics"]["figures"]["ms"] > 0 for r in rows)


def test_peak_memory_is_what_is_held_at_once() -> None:
    def work() -> None:
        torch.ones(16, 2**20)  # 64 MiB

    found = common.peak_memory(work, torch.device("cpu"))
    assert found is None or found == pytest.approx(64, rel=0.1)


def test_pixel_sizes(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mnist-pixel-3.5m"
    tiny = PixelConfig(MNIST, dim=16, depth=1, num_heads=2, mlp_dim=16)
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], model=tiny))

    for _ in range(2):  # the second time it has its row
        pixel_sizes.main(names=(name,), num_steps=1, draw_at_once=1, device="cpu")
    [row] = ledger.rows(small_world)
    figures = row["metrics"]["figures"]
    assert figures["seconds a step"] == pytest.approx(4 / figures["training images/s"])
    assert figures["drawn images/s, 1 at once"] > 0


def test_positions(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = PixelConfig(make_spec(14), dim=16, depth=1, num_heads=2, mlp_dim=16, dropout=0.3)
    monkeypatch.setattr(positions, "SMALL", tiny)

    def script() -> None:
        positions.main(schemes=("learned", positions.OLD), seeds=(3,), epochs=8, num_samples=20)

    rows = run_twice(script, small_world)
    assert [r["recipe"] for r in rows] == [
        "positions/14/(real digits)/off/8",
        "positions/14/learned/off/8/seed 3",
        "positions/14/learned/on/8/seed 3",
        "positions/14/rope on the head axis/off/8/seed 3",
        "positions/14/rope on the head axis/on/8/seed 3",
    ]
    bits = [r["metrics"]["figures"].get("validation bits/dim") for r in rows]
    assert bits[0] is None
    assert bits[1] != bits[2]
    assert rows[1]["images_seen"] == rows[2]["images_seen"] == 320
    assert (rows[1]["exact"], rows[2]["exact"]) == (True, None)
    with pytest.raises(ValueError, match="size is 20, expected 14 or 28"):
        positions.main(size=20)


def test_patch_general(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"dim": 8, "depth": 1, "num_heads": 2, "gate_width": 8, "head_width": 8}
    monkeypatch.setitem(patch_general.SIZES, 8, tiny)

    def script() -> None:
        patch_general.main(
            patch_sizes=(4, 7), dims=(8,), seeds=(0,), max_seconds=0.2, num_samples=20
        )

    rows = run_twice(script, small_world)
    assert [row["metrics"]["settings"]["patch"] for row in rows] == [4, 7]
    with pytest.raises(ValueError, match="dim is 9, expected one of 96, 128"):
        patch_general.main(dims=(9,))


def test_bad_input_is_one_sentence(
    small_world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["experiments/patch_general.py", "--patch-sizes", "3"])
    with pytest.raises(SystemExit) as exit:
        common.start(patch_general.main, patch_general.__doc__)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("patch_general: image_size is ")
    assert said.endswith("expected a multiple of patch_size 3\n")


def test_diffusion(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objectives = (("flow", "x", "v", 0.8, 4), ("linear", "epsilon", "epsilon", None, 7))
    monkeypatch.setattr(diffusion, "OBJECTIVES", objectives)
    monkeypatch.setattr(diffusion, "NUM_BOUND_IMAGES", 4)

    def script() -> None:
        diffusion.main(max_seconds=0.2, num_samples=20, num_steps=2)

    rows = run_twice(script, small_world)
    assert [r["metrics"]["settings"]["patch"] for r in rows] == [4, 7]
    assert all(r["exact"] is False for r in rows)


def test_changes_of_a_recipe(small_world: Path) -> None:
    cells = "{}", '{"built_in_guidance": 1.5, "blank_gate": false}'
    for _ in range(2):  # the second time there is nothing left to do
        changes.main("mnist-mar", cells, max_seconds=0.2, num_samples=20)
    rows = ledger.rows(small_world)
    found = [r["metrics"]["settings"]["change"] for r in rows]
    assert found == ["none", "built_in_guidance 1.5 (from 1.0), blank_gate False (from True)"]
    assert rows[0]["metrics"]["experiment"] == "changes-mnist-mar"
    assert "recall, %" in rows[0]["metrics"]["figures"]
    with pytest.raises(ValueError, match="depht unknown"):
        changes.main("mnist-mar", ('{"depht": 1}',), num_samples=20)


def test_steps_of_diffusion(small_world: Path, tmp_path: Path) -> None:
    paths = []
    for name in ("ddpm", "mar"):
        paths.append(str(tmp_path / name))
        checkpoint.save(RECIPES[f"mnist-{name}"].model.build(), paths[-1], recipe=f"mnist-{name}")

    def script() -> None:
        diffusion_steps.main(tuple(paths), (2,), ("heun",), (2.0,), (1, 3), num_samples=20)

    rows = run_twice(script, small_world)
    assert [r["metrics"]["settings"]["head steps"] for r in rows] == ["–", 1, 3]


def test_inpainting(small_world: Path, tmp_path: Path) -> None:
    paths = []
    for name, config in (("patch", TINY_PATCH), ("ddpm", RECIPES["mnist-ddpm"].model)):
        paths.append(str(tmp_path / name))
        checkpoint.save(config.build(), paths[-1], recipe=f"mnist-{name}")
    folder = small_world.parent / "inpainting"
    for _ in range(2):
        inpainting.main(models=tuple(paths), num_images=10, num_classified=10)
    rows = ledger.rows(small_world)
    patch, ddpm = rows[:5], rows[5:]
    assert [r["exact"] for r in rows] == [True] * 5 + [None] * 3
    assert patch[-1]["metrics"]["figures"]["nats of the hidden rows"] > 0
    assert ddpm[0]["metrics"]["figures"]["digit inferred right, %"] is None
    assert len(list(folder.glob("mnist-*-?.png"))) == 6
    # Rows of pixels are drawn in raster order where they are rows of whole patches.
    assert inpainting.SEEN_ROWS % RECIPES["mnist-patch"].model.patch_size == 0


def test_prompting(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES[prompting.SCRATCH], model=TINY_PROMPTED, batch_size=8)
    monkeypatch.setitem(RECIPES, prompting.SCRATCH, recipe)
    folder = Path("runs") / prompting.SCRATCH
    folder.mkdir(parents=True)
    checkpoint.save(TINY_PROMPTED.build(), folder / "model.safetensors", seconds="6", images="8")

    def script() -> None:
        prompting.main(models=(str(folder),), num_prompts=20, guidances=(1.0,))

    rows = run_twice(script, small_world)
    asked, costs = rows[:-1], rows[-1]
    assert [r["metrics"]["settings"]["prompts"] for r in asked][: len(prompting.SPLITS)] == [
        *prompting.SPLITS
    ]
    assert all(0 <= r["metrics"]["figures"]["drawn right, %"] <= 100 for r in asked)
    assert costs["metrics"]["figures"]["first picture warm, s"] > 0
    assert costs["metrics"]["figures"]["training, minutes"] == 0.1

    prompting.main(num_prompts=20, sizes=True, numbers=(200,), max_seconds=0.2)
    (*_, size) = ledger.rows(small_world)
    assert size["recipe"].startswith("prompting-size/mnist-prompt-scratch/200/0.2/seed 0")
    assert "held-out sums, %" in size["metrics"]["figures"]


def test_compress(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("constriction")
    model = random_model(replace(TINY["patch"], data=MNIST, patch_size=14))
    checkpoint.save(model, "model")

    for _ in range(2):
        compress.main(models=("./model",), num_images=9, num_alone=2)
    rows = ledger.rows(small_world)
    assert len(rows) == len(ledger.latest(small_world))
    done = partial(common.is_done, "compress", rows[0]["metrics"]["settings"])
    assert [done(dataset="mnist"), done(dataset="cifar10"), done(again=True)] == [
        True,
        False,
        False,
    ]
    codecs = {row["metrics"]["settings"]["codec"]: row["metrics"]["figures"] for row in rows}
    assert [*codecs][:4] == ["model", *compress.PACKERS]
    assert codecs["model"]["read images/s"] > 0
    assert codecs["model"]["median bytes of one image alone"] > 17
    assert codecs["model"]["largest"] >= codecs["model"]["mean"]
    assert 0 <= codecs["model"]["of 60 or fewer, %"] <= 100
    assert all(0.1 < figures["kB"] < 7.4 for figures in codecs.values())
    for name in ("PNG", "WebP"):
        assert codecs[f"{name}, one sheet"]["kB"] < codecs[name]["kB"]
    assert ("JPEG XL" in codecs) == ("JPEG XL is left out" not in capsys.readouterr().out)

    compress.main(models=(), classes=("7",), num_images=9)
    row = ledger.rows(small_world)[-1]
    test = make_digits().test
    assert row["metrics"]["settings"]["classes"] == "7"
    assert row["metrics"]["settings"]["images"] == min(9, sum(test.labels == 7))
    with pytest.raises(ValueError, match="unknown class 'seven'"):
        compress.main(models=(), classes=("seven",))


def test_the_usual_codecs_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    unpack = {"gzip -9": gzip.decompress, "bz2 -9": bz2.decompress, "lzma -9e": lzma.decompress}
    content = idx.header((50, 3, 4, 4)) + images.numpy().tobytes()
    for name, pack in compress.PACKERS.items():
        assert unpack[name](pack(content)) == content
    png, webp = compress.PICTURES["PNG"], compress.PICTURES["WebP"]
    assert compress.picture_bytes([images], png) < compress.picture_bytes(images.split(1), png)
    assert compress.picture_bytes([images], webp) > 0
    with pytest.raises(ValueError, match="WebP changed pixels, expected none"):
        compress.picture_bytes([images], webp | {"lossless": False})


@pytest.fixture
def drawn(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set that a tiny model of scans drew; real digits are strokes with scans."""
    scans = make_scans()
    images = scans.images.repeat(7, 1, 1, 1)[:40]
    split = Split(images, torch.arange(40) % 10)
    for module in (synthetic, evaluate):
        monkeypatch.setattr(module, "load_dataset", lambda *_: Dataset(split, split, split, MNIST))
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", lambda: scans)
    judge = ClassifierConfig(MNIST, width=4)
    monkeypatch.setattr(synthetic.synthetic, "load_judge", lambda spec: judge.build())
    patch = replace(TINY["patch"], data=replace(SCANS, shape=(1, 24, 24)), patch_size=8)
    models = {
        "mnist-cnn": judge,
        "mnist-scan-tiny": ScanConfig(MNIST, patch),
        "mnist-ddpm": replace(TINY["ddpm"], data=MNIST),
    }
    for name, model in models.items():
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], model=model, batch_size=8))
    checkpoint.save(RECIPES["mnist-scan-tiny"].model.build(), "drawer.safetensors")
    synth(Path("drawn"), 40, "drawer.safetensors")
    return Path("drawn")


def test_synthetic(drawn: Path, small_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "GENERATIONS", 2)
    monkeypatch.setattr(synthetic, "WAYS", ("added",))

    def script() -> None:
        how = {"classifier_images": 8, "generator_images": 8, "num_samples": 20}
        synthetic.main(drawn, arms=("real and all drawn",), seeds=(0,), **how)

    script()
    rows = ledger.rows(small_world)
    script()
    assert ledger.rows(small_world) == rows
    assert [row["recipe"] for row in rows] == [
        "synthetic-classifier/real and all drawn/80/8/seed 0",
        "synthetic-generator/real and all drawn/mnist-ddpm/80/8/seed 0",
        "synthetic-generator/real/mnist-ddpm/40/8/seed 0",
        "synthetic-chain/added/1/mnist-ddpm/80/8/seed 0",
        "synthetic-chain/added/2/mnist-ddpm/120/8/seed 0",
    ]
    assert rows[0]["metrics"]["figures"]["test accuracy, %"] >= 0
    for name in ("test bits/dim, as fitted", "fd_cnn", "precision, %", "recall, %"):
        assert rows[-1]["metrics"]["figures"][name] >= 0
    assert (small_world.parent / "synthetic" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_arms_of_synthetic_digits(drawn: Path) -> None:
    columns = synthetic.synthetic.load(drawn)
    real = make_digits().train
    arms = synthetic.make_arms(real, columns)
    assert {name: len(arm(0)) for name, arm in arms.items()} == {
        "real": 40,
        "all drawn": 40,
        "real and all drawn": 80,
        "best half by probability": 20,
        "best half by nats": 20,
        "best half by distance": 20,
        "random half": 20,
        "worst half by probability": 20,
        "worst half by nats": 20,
        "worst half by distance": 20,
        "random quarter": 10,
        "random twentieth": 2,
    }
    best, worst = (arms[f"{way} half by nats"](0).images for way in ("best", "worst"))
    assert torch.equal(torch.cat([best, worst]).sum(0), columns["image"].sum(0))
    assert not torch.equal(arms["random half"](0).images, arms["random half"](1).images)
    for words, message in (
        ({"parts": ("chains",)}, "part is 'chains', expected one of classifier, generator, chain"),
        ({"arms": ("none",)}, "arm is 'none', expected one of real, all drawn"),
        ({"generator": "none"}, "unknown recipe 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            synthetic.main(drawn, **words)


def test_differences_to_a_random_choice(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        trials.make_row(
            "synthetic-classifier", {"trained on": arm, "images": 1}, {"accuracy": accuracy}, seed
        )
        for arm, accuracies in {"random half": (90.0, 91.0), "real": (92.0, 95.0)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    synthetic.say_differences(rows)
    assert capsys.readouterr().out == "real − random half · accuracy · +3 ± 1\n"
