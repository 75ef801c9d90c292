"""The command line as a user meets it: what it draws, what it says, and its exit codes."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, TINY_PATCH, make_digits, make_scans, make_spec, moved
from PIL import Image, PngImagePlugin

import mnist_transformer
from mnist_transformer import cli
from mnist_transformer.data import mnist
from mnist_transformer.evaluation import ledger
from mnist_transformer.models import checkpoint
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.options import OPTIONS
from mnist_transformer.recipes import RECIPES, Recipe
from mnist_transformer.utils import images
from mnist_transformer.utils.terminal import exit_code


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


OPTION_FLAGS = " ".join(f"--{option.name.replace('_', '-')}" for option in OPTIONS)

# --- help ---


def test_help_is_quick_and_does_without_torch() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = (
        "import sys\n"
        "from mnist_transformer.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as done:\n"
        "    assert not done.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for verb in cli.VERBS:
        assert verb in done.stdout
    # Processor time: it does not depend on what else the machine does.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("draw", f"WHAT --n --model --seed --out --gif --crisp --device {OPTION_FLAGS}"),
        ("inpaint", f"IMAGE --hole --mask --label --n --model --out --gif {OPTION_FLAGS}"),
        ("ask", f"PROMPT --model --seed --out --device {OPTION_FLAGS}"),
        ("train", "--out --data --device --seed --max-seconds --epochs --batch-size --lr"),
        ("eval", "MODEL --data"),
        ("export", "MODEL --out"),
        ("list", "NAME"),
        ("scans build", "--data --out"),
        ("scans verify", "--data"),
        ("synth", f"--out --n --model --seed --data --device {OPTION_FLAGS}"),
        ("synth select", "FOLDER --out --best --worst --random --by --seed"),
        ("hub push", "MODEL OWNER/NAME --card --private"),
        ("hub pull", "OWNER/NAME --out"),
    ],
)
def test_every_verb_explains_itself(
    verb: str, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([*verb.split(), "--help"])
    assert not done.value.code
    text = capsys.readouterr().out
    assert all(flag in text for flag in flags.split())
    assert "None" not in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert mnist_transformer.__version__ in capsys.readouterr().out


# --- draw ---


def test_draw_saves_a_picture_named_after_the_digits(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["draw", "3", "--model", str(tiny_checkpoint)]) == 0
    assert "saved 3.png" in capsys.readouterr().out
    with Image.open("3.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (280, 280)
        assert "3 drawn by tiny.safetensors, seed 0" in picture.info["Description"]


def test_a_number_reads_along_each_row(tiny_checkpoint: Path) -> None:
    flags = ["--model", str(tiny_checkpoint), "--seed", "5", "--guidance", "2"]
    assert cli.main(["draw", "2026", "--n", "3", *flags]) == 0
    how = mnist_transformer.Sampling(guidance=2.0)
    model = mnist_transformer.load(tiny_checkpoint, "cpu")
    drawn = model.sample([2, 0, 2, 6] * 3, range(5, 17), how)
    expected = images.enlarge(images.grid(drawn, columns=4))
    with Image.open("2026.png") as picture:
        assert picture.width // picture.height == 4 // 3
        assert (np.asarray(picture) == np.asarray(expected)).all()


def test_single_digits_fill_a_square(tiny_checkpoint: Path) -> None:
    assert cli.main(["draw", "7", "--n", "5", "--model", str(tiny_checkpoint)]) == 0
    with Image.open("7.png") as picture:
        assert picture.width * 2 == picture.height * 3  # 3 columns, 2 rows


def test_the_seed_decides_the_picture(tiny_checkpoint: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        flags = ["--model", str(tiny_checkpoint), "--seed", seed, "--out", f"{name}.png"]
        assert cli.main(["draw", "4", *flags]) == 0
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_many_digits_are_drawn_in_batches(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = []
    for size in (256, 3):
        monkeypatch.setattr("mnist_transformer.commands.draw.MAX_BATCH", size)
        assert cli.main(["draw", "1", "--n", "8", "--model", str(tiny_checkpoint)]) == 0
        pictures.append(Path("1.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert cli.main(["draw", "1", "--n", "8", "--gif", "--model", str(tiny_checkpoint)]) == 2


def test_classes_have_names_where_they_are_not_digits(
    own_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("plane", "cat", "dog", "T-shirt/top")
    spec = replace(make_spec(), class_names=names)
    checkpoint.save(replace(TINY_PATCH, data=spec).build(), Path("named.safetensors"))
    flags = ["--model", "named.safetensors"]
    assert cli.main(["draw", "cat, T-shirt/top", "--n", "2", *flags]) == 0
    model = mnist_transformer.load("named.safetensors", "cpu")
    expected = images.enlarge(images.grid(model.sample([1, 3, 1, 3], range(4)), columns=2))
    with Image.open("cat-T-shirt-top.png") as picture:
        assert (np.asarray(picture) == np.asarray(expected)).all()
    assert cli.main(["draw", "cats", *flags]) == 2
    assert "unknown class 'cats'; nearest: cat" in capsys.readouterr().err


def test_gif_shows_the_drawing_happen(tiny_checkpoint: Path) -> None:
    flags = ["--gif", "--out", "new/film.png", "--model", str(tiny_checkpoint)]
    assert cli.main(["draw", "12", *flags]) == 0
    with Image.open("new/film.gif") as film, Image.open("new/film.png") as picture:
        assert film.n_frames > 5
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("L")).astype(int)
        assert abs(last - np.asarray(picture.convert("L"))).max() <= 1


def test_a_file_of_somebody_else_is_not_overwritten_by_default(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["draw", "3", "--model", str(tiny_checkpoint)]
    Path("3.png").write_bytes(b"a photograph")
    assert cli.main(command) == 2
    assert "--out" in capsys.readouterr().err
    assert Path("3.png").read_bytes() == b"a photograph"
    assert cli.main([*command, "--out", "3.png"]) == 0  # the user said so
    assert cli.main([*command, "--seed", "1"]) == 0  # our own picture
    # The name of the GIF follows from that of the PNG, so nobody chose it.
    Path("3.gif").write_bytes(b"a film")
    assert cli.main([*command, "--out", "3.png", "--gif"]) == 2
    assert "3.gif exists and was not drawn" in capsys.readouterr().err
    assert Path("3.gif").read_bytes() == b"a film"


def test_a_file_that_pillow_will_not_open_is_somebody_else_s(tiny_checkpoint, capfd) -> None:
    command = ["draw", "3", "--model", str(tiny_checkpoint)]
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", " " * 5_000_000, zip=True)
    Image.new("L", (28, 28)).save("3.png", pnginfo=note)
    assert cli.main(command) == 2
    assert "3.png exists and was not drawn by mnist-transformer" in capfd.readouterr().err
    for side in (9_900, 20_000):  # Pillow warns of the one and refuses the other
        Image.new("1", (side, side)).save("3.png")
        assert cli.main(command) == 2
        said = capfd.readouterr().err
        assert "3.png exists and was not drawn by mnist-transformer" in said
        assert said.count("\n") == 1


# --- mistakes ---


@pytest.fixture
def broken(tiny_checkpoint: Path, classifier_checkpoint: Path) -> dict[str, str]:
    content = tiny_checkpoint.read_bytes()
    Path("truncated.safetensors").write_bytes(content[: len(content) // 2])
    Path("foreign.safetensors").write_bytes(b"%PDF-1.4 something else entirely")
    Path("a_file").touch()
    Path("full.png").symlink_to("/dev/full")
    return {"tiny": str(tiny_checkpoint), "judge": str(classifier_checkpoint)}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("draw 3x --model {tiny}", "digits are '3x'"),
        ("draw ３ --model {tiny}", "expected one or more of 0 to 9"),
        ("draw 3 --n 0", "n is 0"),
        ("draw 3 --n -2", "n is -2"),
        ("draw 3 --temperature 0", "temperature is 0"),
        ("draw 3 --temperature nan", "temperature is nan"),
        ("draw 3 --top-p 1.5", "top_p is 1.5"),
        ("draw 3 --top-p 0", "top_p is 0"),
        ("draw 3 --guidance -1", "guidance is -1"),
        ("draw 3 --guidance-interval 0.5 0.2", "guidance_interval is (0.5, 0.2)"),
        ("draw 3 --model {tiny} --guidance-interval 0.1 0.5", "does not use guidance_interval"),
        ("draw 3 --model missing.safetensors --seed -1", "seed is -1"),
        ("draw 3 --n 2 --model missing.safetensors --seed 4294967295", "seed is 4294967296"),
        ("draw 33 --model {tiny} --seed 4294967295", "seed is 4294967296"),
        ("draw 3 --model {tiny} --device nonsense", "device is 'nonsense', expected"),
        ("draw 3 --model {tiny} --out x.jpg", "expected a name in .png"),
        ("draw 3 --model {tiny} --out a_file/x.png", "a_file"),
        ("draw 3 --model {tiny} --out /proc/x.png", "/proc/x.png: "),
        ("draw 3 --model {tiny} --out full.png", "full.png is not a file, expected a name in .png"),
        ("draw 3 --model mnist-pach", "unknown model 'mnist-pach'"),
        ("draw 3 --model missing.safetensors", "checkpoint missing.safetensors does not exist"),
        ("draw 3 --model no/such/folder", "checkpoint no/such/folder does not exist"),
        ("draw 3 --model truncated.safetensors", "truncated.safetensors"),
        ("draw 3 --model foreign.safetensors", "foreign.safetensors"),
        ("draw 3 --model {judge}", "does not draw"),
        ("train mnist-pach", "nearest: mnist-patch"),
        ("train mnist-patch --epochs 0", "epochs is 0"),
        ("train mnist-patch --data nowhere", "nowhere does not exist"),
        ("train mnist-patch --out a_file/run", "a_file"),
        ("eval mnist-pach", "unknown model"),
        ("list mnist-pach", "nearest: mnist-patch"),
        ("eval {tiny} --data nowhere", "nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(
    command: str, message: str, broken: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command.format(**broken).split()) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("mnist-transformer: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "draw"),
        ("drow 3", "draw"),
        ("draw", "WHAT"),
        ("draw 3 --tempature 1", "--temperature"),
        ("draw 3 --n many", "many"),
        ("train", "RECIPE"),
    ],
)
def test_wrong_arguments_are_explained(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(command.split())
    assert done.value.code == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "list", interrupt)
    assert cli.main(["list"]) == 130


def test_a_reader_that_stops_reading_is_no_error() -> None:
    command = f"{sys.executable} -m mnist_transformer.cli draw --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("usage: mnist-transformer draw")
    assert done.stderr == ""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "mnist_transformer", "--version"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_too_little_memory_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    cuda = RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
    for error in (MemoryError(), cuda):
        assert exit_code("mnist-transformer", partial(fail, error)) == 2
        assert capsys.readouterr().err.startswith("mnist-transformer: out of memory, expected")
    with pytest.raises(RuntimeError, match="a fault"):
        exit_code("mnist-transformer", partial(fail, RuntimeError("a fault")))


def test_output_that_cannot_be_written_is_one_sentence() -> None:
    command = f"{sys.executable} -m mnist_transformer --version > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "mnist-transformer: No space left on device\n"


# --- the other verbs ---

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "ascii:strict"])
@pytest.mark.parametrize("words", ["--help", "list", "list mnist-var", "draw --help"])
def test_output_in_any_encoding(encoding: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnist_transformer", *words.split()],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


def test_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in RECIPES:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", RECIPES)
def test_list_says_more_about_a_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", name]) == 0
    text = capsys.readouterr().out
    assert f"mnist-transformer train {name}" in text
    assert RECIPES[name].about in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    if name == "mnist-patch":
        for words in ("draws", "num_particles", "patch_size=2", "bits/dim: 0.", "shipped"):
            assert words in text


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    recipe = Recipe("tiny", TINY_PATCH, batch_size=16, epochs=0.1)
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    monkeypatch.setattr(mnist, "load", lambda folder=None: make_digits(400))
    return recipe


def test_train_then_draw_then_eval(
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "tiny", "--device", "cpu"]) == 0
    assert f"saved {Path('runs/tiny/model.safetensors')}" in capsys.readouterr().out
    assert cli.main(["draw", "3", "--model", "runs/tiny"]) == 0
    # An untrained judge: this test is about the verb, not about the figures.
    judge = ClassifierConfig(make_spec()).build()
    monkeypatch.setattr("mnist_transformer.evaluation.protocol.load_judge", lambda spec: judge)
    monkeypatch.setattr(
        "mnist_transformer.evaluation.protocol.sampling_speed", lambda *_, **__: 1.0
    )
    monkeypatch.setattr(ledger, "results_folder", lambda: tmp_path / "results")
    assert cli.main(["eval", "runs/tiny", "--device", "cpu", "--num-samples", "20"]) == 0
    (row,) = ledger.rows(tmp_path / "results" / "ledger.jsonl")
    assert row["recipe"] == "tiny"
    assert row["images_seen"] >= 40
    assert row["metrics"]["bits_per_dim"] > 0
    assert row["metrics"]["curve"]
    assert row["exact"] is True
    assert row["parameters"] == mnist_transformer.load("runs/tiny").num_parameters
    assert (tmp_path / "results" / "tiny" / "samples.png").exists()


def test_training_shows_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    from mnist_transformer.training.log import Record, training

    record = Record(
        step=10,
        images=640,
        seconds=5.0,
        progress=0.25,
        loss=420.0,
        bits_per_dim=0.773,
        images_per_second=128.4,
        seconds_left=3725.0,
    )
    with training("tiny") as report:
        report(record)
        report(record)  # within the same half minute
        report(replace(record, message="saved"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "tiny 25% loss 420 · validation 0.773 bits/dim · 128 images/s · 1:02:05 left",
        "saved",
    ]


def test_python_runs_the_package_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnist_transformer", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == f"mnist-transformer {mnist_transformer.__version__}\n"


def test_crisp_saves_the_scans(monkeypatch, capsys) -> None:
    monkeypatch.setattr("mnist_transformer.models.scan.load_scans", make_scans)
    checkpoint.save(moved(TINY["scan"]), "tiny.safetensors")
    command = ["draw", "102", "--crisp", "--model", "tiny.safetensors"]
    assert cli.main(command) == 0
    assert "saved 102-scan.png and 102-scan.svg" in capsys.readouterr().out
    with Image.open("102-scan.png") as picture:
        assert picture.width == 3 * picture.height  # three scans and their margins in a row
        assert set(np.unique(np.asarray(picture))) == {0, 255}
    assert Path("102-scan.svg").read_text().count("Z") >= 3
    assert cli.main(command) == 0  # our own files are replaced
    Path("102-scan.svg").write_text("a drawing")
    assert cli.main(command) == 2
    assert "102-scan.svg exists and was not drawn" in capsys.readouterr().err


def test_crisp_wants_a_model_of_scans(tiny_checkpoint: Path, capsys) -> None:
    assert cli.main(["draw", "1", "--crisp", "--model", str(tiny_checkpoint)]) == 2
    assert "draws no scans, expected a model of scans" in capsys.readouterr().err
