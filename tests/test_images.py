"""Grids, files and the terminal."""

import errno
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mnist_transformer.commands import common
from mnist_transformer.data import pictures
from mnist_transformer.evaluation import ledger
from mnist_transformer.training import log
from mnist_transformer.utils import images, terminal, trees


def some(num: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num, channels, 3, 5), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gap", [0, 2])
def test_grid_places_every_image(channels: int, gap: int) -> None:
    given = some(5, channels)
    picture = images.grid(given, columns=3, gap=gap)
    assert picture.size == (3 * (5 + gap) - gap, 2 * (3 + gap) - gap)
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    for index in range(5):
        top, left = (3 + gap) * (index // 3), (5 + gap) * (index % 3)
        tile = pixels[top : top + 3, left : left + 5]
        assert (tile == given[index].permute(1, 2, 0).numpy()).all()
    assert (pixels[3 + gap :, 2 * (5 + gap) :] == 0).all()  # no sixth image


@pytest.mark.parametrize(
    "wrong", [some(0), some(2)[0], some(2).float(), some(2).repeat(1, 2, 1, 1)]
)
def test_grid_refuses_what_is_no_batch_of_images(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        images.grid(wrong, columns=2)
    with pytest.raises(ValueError, match="0 columns"):
        images.grid(some(2), columns=0)


def test_png_is_exact_and_known_again(tmp_path: Path) -> None:
    picture = images.grid(some(4), columns=2)
    path = tmp_path / "new" / "x.png"
    images.save_png(picture, path, {"Description": "four ≤ 5"})
    with Image.open(path) as read:
        assert (np.asarray(read) == np.asarray(picture)).all()
        assert read.info["Description"] == "four ≤ 5"
    assert images.is_ours(path)
    picture.save(tmp_path / "foreign.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("foreign.png", "text.png", "missing.png"):
        assert not images.is_ours(tmp_path / name)


def test_gif_shows_first_and_last_and_not_too_many(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in range(0, 200)]
    images.save_gif(frames, tmp_path / "x.gif")
    assert images.is_ours(tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as read:
        assert read.n_frames == images.MAX_FRAMES
        assert read.convert("L").getpixel((0, 0)) == 0
        read.seek(read.n_frames - 1)
        assert read.convert("L").getpixel((0, 0)) == 199
        assert read.info["duration"] == images.LAST_FRAME_MS


def test_enlarge_keeps_pixels_square() -> None:
    picture = images.grid(some(1), columns=1)
    assert (np.asarray(images.enlarge(picture, 2))[::2, ::2] == np.asarray(picture)).all()
    assert images.enlarge(Image.new("L", (28, 28))).size == (280, 280)
    assert images.enlarge(Image.new("L", (2000, 10))).size == (2000, 10)


def test_show_draws_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("L", (8, 8), 255)
    for is_terminal in (False, True):
        file = io.StringIO()
        screen = Console(file=file, force_terminal=is_terminal, width=40)
        monkeypatch.setattr(terminal, "screen", screen)
        terminal.show(picture)
        assert bool(file.getvalue()) == is_terminal


SHOW = """
from PIL import Image
from mnist_transformer.utils import terminal
picture = Image.new("L", (8, 8))
picture.paste(255, (4, 0, 8, 8))
terminal.show(picture)
"""
ENDS_BRIGHT, BLOCK = "    @@@@\n" * 4, "\u2580"


@pytest.mark.parametrize(
    ("settings", "size", "answers", "letters"),
    [
        ({}, (24, 80, 800, 480), True, False),
        ({}, (24, 80, 0, 0), True, False),  # it does not say how large a column is
        ({}, (0, 0, 0, 0), True, True),
        ({}, (24, 80, 800, 480), False, True),  # there is nowhere to hear its answer from
        ({"COLUMNS": "0"}, (24, 80, 800, 480), True, False),
        ({"NO_COLOR": "1"}, (24, 80, 800, 480), True, True),
        ({"TERM": "dumb"}, (24, 80, 800, 480), True, True),
        ({"PYTHONIOENCODING": "ascii"}, (24, 80, 800, 480), True, True),
    ],
)
def test_a_terminal_of_any_kind_shows_a_picture(
    settings: dict[str, str],
    size: tuple[int, ...],
    answers: bool,
    letters: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size))
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **settings},
        stdin=theirs if answers else subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    said = os.read(ours, 2**16).decode().replace("\r", "")
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (ENDS_BRIGHT in said) == letters
    assert (BLOCK in said) != letters


@pytest.mark.parametrize("save", ["png", "gif"])
def test_a_picture_is_written_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    path = tmp_path / f"{'x' * 250}.{save}"
    picture = images.grid(some(1), columns=1)

    def draw() -> None:
        if save == "png":
            images.save_png(picture, path)
        else:
            images.save_gif([picture, picture], path)

    draw()
    before = path.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left") as caught:
        draw()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("x.png", "x.svg", "metrics.jsonl", "state.safetensors", "ledger.jsonl"):
        os.mkfifo(tmp_path / name)
    pipe = tmp_path / "x.png"
    assert not images.is_ours(pipe)
    assert not images.is_ours(tmp_path / "x.svg")
    with pytest.raises(ValueError, match=r"x\.png is not a file, expected a name in \.png"):
        common.picture_file("3", pipe)
    with pytest.raises(ValueError, match=r"x\.png is not a file, expected a PNG"):
        pictures.open_picture(pipe)
    with pytest.raises(ValueError, match=r"state.safetensors cannot be read, .* not a file"):
        trees.load_state(tmp_path / "state.safetensors")
    assert log.read_metrics(tmp_path / "metrics.jsonl") == []
    assert ledger.rows(tmp_path / "ledger.jsonl") == []
