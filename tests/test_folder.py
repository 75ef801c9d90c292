"""A folder of pictures as a data set, and a model of it by one command."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PRINT_PEAK, make_digits, needs_proc
from PIL import Image

from mnist_transformer import cli
from mnist_transformer.data import load_dataset, mnist
from mnist_transformer.evaluation import ledger, protocol
from mnist_transformer.models import checkpoint, loading
from mnist_transformer.recipes import GENERIC


def make(folder: Path, colour: bool = True, per_class: int = 20) -> Path:
    """Squares of two colours, or two greys, at random places."""
    random = np.random.default_rng(0)
    for name, level in (("night", (20, 30, 90)), ("noon", (250, 220, 40))):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.full((20, 24, 3), 128, np.uint8)
            y, x = random.integers(0, 10, 2)
            pixels[y : y + 8, x : x + 8] = level if colour else level[0]
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def splits(dataset) -> list[int]:
    return [len(x) for x in (dataset.train, dataset.val, dataset.test)]


def test_classes_splits_and_notes(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine")
    dataset = load_dataset("folder", folder, size=8)
    assert dataset.spec.name == "folder:mine"
    assert dataset.spec.shape == (3, 8, 8)
    assert dataset.spec.class_names == ("night", "noon")
    assert sum(splits(dataset)) == 40
    assert min(splits(dataset)) >= 1
    first, classes = dataset.notes
    lengths = "{} to train, {} to validate, {} to test".format(*splits(dataset))
    assert first == f"40 pictures in colour, 8x8: {lengths}"
    assert classes == "2 classes: night 20, noon 20"
    again = load_dataset("folder", folder, size=8)
    assert torch.equal(again.train.images, dataset.train.images)


def test_a_picture_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    folder = make(tmp_path, per_class=40)

    def places() -> dict[bytes, str]:
        dataset = load_dataset("folder", folder, size=20)
        return {
            x.numpy().tobytes(): name
            for name in ("train", "val", "test")
            for x in getattr(dataset, name).images
        }

    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.new("RGB", (20, 20), (number, 0, 9)).save(path)
    before = places()
    for number in range(30):
        Image.new("RGB", (20, 20), (number, 255, 9)).save(folder / "noon" / f"more{number}.png")
    after = places()
    assert len(before) == 80
    assert {key: after[key] for key in before} == before
    assert 0.6 < list(before.values()).count("train") / 80 < 0.95


def test_no_subfolders_are_one_class_and_three_pictures_are_enough(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("L", (9, 9), number).save(tmp_path / f"{number}.png")
    dataset = load_dataset("folder", tmp_path, size=8)
    assert dataset.spec.class_names == ("picture",)
    assert splits(dataset) == [1, 1, 1]
    assert dataset.spec.shape == (1, 8, 8)
    assert len(dataset.notes) == 1


def test_grey_unless_one_has_colour_or_one_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "grey", colour=False)
    for path in folder.rglob("*.png"):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".jpg"))
    assert load_dataset("folder", folder).spec.shape == (1, 32, 32)
    assert load_dataset("folder", folder, channels=3).spec.shape == (3, 32, 32)
    Image.new("RGB", (9, 9), "red").save(folder / "noon" / "red.png")
    assert load_dataset("folder", folder).spec.shape == (3, 32, 32)
    assert load_dataset("folder", folder, channels=1).spec.shape == (1, 32, 32)


def test_the_centre_is_kept_and_averaged(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, 8:12] = [0, 0, 200, 100]
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    image = load_dataset("folder", tmp_path, size=4).train.images[0, 0]
    assert image.tolist() == [[0, 150, 0, 0]] * 4


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says this size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    kinds = tmp_path / "kinds"
    kinds.mkdir()
    grey = Image.fromarray(np.full((8, 8), 200, np.uint8))
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    expected = {}

    def save(name: str, picture: Image.Image, level: tuple[int, ...], **options: object) -> None:
        picture.save(kinds / name, **options)
        expected[name] = level

    save("grey.png", grey, (200, 200, 200))
    save("black and white.png", grey.convert("1"), (255, 255, 255))
    save("palette.png", red.quantize(4), (200, 0, 0))
    save("16 bit.png", Image.fromarray(np.full((8, 8), 200 * 257, np.uint16)), (200, 200, 200))
    save("cmyk.tif", red.convert("CMYK"), (200, 0, 0))
    save("transparent.png", Image.new("RGBA", (8, 8), (200, 0, 0, 0)), (255, 255, 255))
    save("moving.gif", red, (200, 0, 0), save_all=True, append_images=[grey.convert("RGB")])
    save("long.png", Image.new("RGB", (400, 8), (200, 0, 0)), (200, 0, 0))
    half = red.copy()
    half.paste((0, 0, 200), (0, 4, 8, 8))  # red above blue
    turned = Image.Exif()
    turned[274] = 6  # to be shown a quarter clockwise: blue left of red
    save("turned.png", half, (0, 0, 200), exif=turned)
    (kinds / "huge.png").write_bytes(png_header(20_000, 20_000))
    (kinds / "damaged.png").write_bytes(png_header(8, 8))
    (kinds / "notes.txt").write_text("no picture")
    (kinds / ".hidden.png").write_text("no picture")
    save("real.tif", Image.fromarray(np.full((8, 8), 0.5, np.float32)), (0, 0, 0))
    dataset = load_dataset("folder", tmp_path, size=8)
    (count, classes, skipped) = dataset.notes
    assert count.startswith("10 pictures in colour")
    assert classes == "1 classes: kinds 10"
    assert skipped.startswith("3 files skipped: ")
    assert "kinds/huge.png (has over 50,000,000 pixels, expected fewer)" in skipped
    assert "kinds/damaged.png (is damaged: " in skipped
    assert "kinds/notes.txt (is not a picture, expected a PNG or JPEG file)" in skipped
    every = torch.cat([dataset.train.images, dataset.val.images, dataset.test.images])
    found = sorted(tuple(image[:, 4, 0].tolist()) for image in every)
    close = zip(found, sorted(expected.values()), strict=True)
    assert all(abs(a - b) <= 1 for pair in close for a, b in zip(*pair, strict=True)), found


@needs_proc
def test_many_large_pictures_take_little_memory(tmp_path: Path) -> None:
    large = Image.new("RGB", (7000, 5000), (9, 99, 199))
    large.save(tmp_path / "0.png", compress_level=1)
    large.save(tmp_path / "1.jpg")
    large.convert("RGBA").save(tmp_path / "2.png", compress_level=1)
    large.save(tmp_path / "3.jpg")
    code = (
        "import sys; from mnist_transformer.data import load_dataset\n"
        "print(len(load_dataset('folder', sys.argv[1]).train))\n"
        f"{PRINT_PEAK}"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num, peak = map(int, done.stdout.split())
    assert num == 2
    assert peak < 1e6


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    def refuse(message: str, **how: int) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_dataset("folder", tmp_path, **how)
        assert "\n" not in str(caught.value)

    refuse("holds 0 readable pictures, expected 3 or more$")
    Image.new("L", (9, 9)).save(tmp_path / "one.png")
    refuse("holds 1 readable pictures, expected 3 or more")
    (tmp_path / "two.png").write_bytes(b"no")
    refuse(r"1 files skipped: two.png \(is not a picture")
    refuse("size is 0, expected 1 to 512", size=0)
    refuse("size is 513, expected 1 to 512", size=513)
    refuse("size is 296, expected 1 to 295", size=296, channels=3)
    refuse("channels is 2, expected 1 for grey or 3 for colour", channels=2)
    with pytest.raises(ValueError, match="folder reads a folder of yours, got"):
        load_dataset("folder", tmp_path / "elsewhere")
    make(tmp_path / "more")
    assert (
        "one.png (lies beside the folders of classes)" in load_dataset("folder", tmp_path).notes[2]
    )
    (tmp_path / "More").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "More" / "one.png")
    if not (tmp_path / "more" / "one.png").exists():  # where case counts
        refuse("has the classes More and more, expected names that differ in more than capitals")


# --- one command ---


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
@pytest.mark.parametrize("recipe", ["patch", "pixel", "ddpm", "mar", "var"])
def test_a_folder_is_trained_and_drawn(
    recipe: str, colour: bool, own_folder: None, tmp_path: Path, capsys
) -> None:
    make(tmp_path / "pictures", colour)
    size = 8 if recipe == "pixel" else 16  # it draws one value per step
    train = ["train", recipe, "--data", "pictures", "--size", str(size), "--device", "cpu"]
    code = cli.main([*train, "--epochs", "0.2", "--batch-size", "4"])
    said = capsys.readouterr()
    assert "40 pictures in" in said.err
    assert code == 0
    run = Path("runs") / recipe
    assert f"saved {run / 'model.safetensors'}" in said.out
    assert (run / "loss.png").exists()
    assert (run / "samples.png").exists()
    model = loading.load(run)
    assert model.image_shape == (3 if colour else 1, size, size)
    assert model.config.data.name == "folder:pictures"
    assert cli.main(["draw", "noon,night", "--model", str(run), "--out", "two.png"]) == 0
    with Image.open("two.png") as picture:
        assert picture.mode == ("RGB" if colour else "L")
    assert cli.main(["draw", "moon", "--model", str(run)]) == 2
    assert "nearest: noon" in capsys.readouterr().err


def test_a_run_on_a_folder_is_measured_and_fills_holes(
    own_folder: None, monkeypatch, capsys
) -> None:
    for slow in ("sampling_speed", "throughput"):
        monkeypatch.setattr(protocol, slow, lambda *_, **__: 1.0)
    monkeypatch.setattr(ledger, "results_folder", lambda: Path("results"))
    make(Path("pictures"))
    train = ["train", "ddpm", "--data", "pictures", "--size", "16", "--device", "cpu"]
    assert cli.main([*train, "--epochs", "0.2", "--batch-size", "4"]) == 0
    evaluate = ["eval", "runs/ddpm", "--device", "cpu"]
    assert cli.main(evaluate) == 2
    assert "folder reads a folder of yours, got None: name one" in capsys.readouterr().err
    assert cli.main([*evaluate, "--data", "pictures"]) == 0
    sentence = "folder:pictures has no shipped judge: likelihood and speed are all there is"
    assert sentence in capsys.readouterr().err
    (row,) = ledger.rows(Path("results/ledger.jsonl"))
    assert (row["recipe"], row["dataset"]) == ("ddpm", "folder:pictures")
    assert row["metrics"]["bits_per_dim"] > 0
    assert "drawn" not in row["metrics"]
    with Image.open("results/ddpm/samples.png") as picture:
        assert picture.mode == "RGB"
    inpaint = ["inpaint", "pictures/noon/0.png", "--hole", "bottom", "--model", "runs/ddpm"]
    assert cli.main([*inpaint, "--n", "2", "--out", "whole.png"]) == 0
    said = capsys.readouterr().out
    assert "0.png was cropped to the square at its centre" in said
    assert "0.png was scaled from 24x20 to 16x16" in said
    assert Path("whole.png").exists()
    (Path("pictures") / "dawn").mkdir()
    Image.new("L", (9, 9)).save("pictures/dawn/0.png")
    assert cli.main([*evaluate, "--data", "pictures"]) == 2
    assert "('dawn', 'night', 'noon')), the model expects" in capsys.readouterr().err


def test_a_size_that_does_not_fit_is_told_before_pictures_are_read(capsys) -> None:
    for size, message in (
        ("30", "a multiple of patch_size 4"),
        ("9999", "262,144 together at most"),
    ):
        assert cli.main(["train", "patch", "--data", "nowhere", "--size", size]) == 2
        assert message in capsys.readouterr().err


def test_other_data_is_another_run(own_folder: None, tmp_path: Path, capsys) -> None:
    make(tmp_path / "some", per_class=5)
    make(tmp_path / "others", per_class=5)
    train = ["train", "ddpm", "--size", "8", "--device", "cpu", "--epochs", "1", "--data"]
    assert cli.main([*train, "some"]) == 0
    assert cli.main([*train, "others"]) == 2
    assert "holds another run, with model.data" in capsys.readouterr().err


def test_other_data_sets_and_wrong_options(own_folder: None, monkeypatch, capsys) -> None:
    monkeypatch.setattr(mnist, "load", lambda folder=None: make_digits())
    arguments = ["train", "vqvae", "--dataset", "mnist", "--epochs", "0.1"]
    assert cli.main([*arguments, "--device", "cpu", "--batch-size", "2"]) == 0
    assert checkpoint.load("runs/vqvae/model.safetensors").config.data.name == "mnist"
    make(Path("pictures"), per_class=4)
    for wrong, message in (
        (["mnist-patch", "--size", "16"], "mnist-patch is a recipe for mnist, expected one of"),
        (["patch"], "folder reads a folder of yours, got None: name one with --data"),
        (["patch", "--data", "pictures", "--size", "30"], "expected a multiple of patch_size 4"),
        (["patch", "--data", "pictures", "--size", "0"], "size is 0, expected 1 to 512"),
        (["patch", "--dataset", "mnist", "--size", "8"], "mnist takes no size"),
        (["patch", "--dataset", "mnist-prompts"], "is for models that read sentences, patch reads"),
        (["patch", "--dataset", "fashion"], "unknown dataset 'fashion'; nearest: fashion-mnist"),
    ):
        assert cli.main(["train", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not Path("runs/mnist-patch").exists()


def test_list_names_the_recipes_for_any_data(capsys) -> None:
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in GENERIC)
