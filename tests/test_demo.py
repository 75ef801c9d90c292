"""The demo as a visitor meets it, in a real browser, and the parts that need none."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mnist_transformer import cli
from mnist_transformer.models.patch import Patch

gradio = pytest.importorskip("gradio", reason="needs gradio: the extra [web]")

from mnist_transformer.web import app, draw_tab, restore_tab, shelf  # noqa: E402

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def address(tiny_checkpoint: Path) -> Iterator[str]:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = app.build({"tiny": tiny_checkpoint, "same": tiny_checkpoint})
    yield app.launch(page, "127.0.0.1", port, block=False)
    page.close()


@pytest.fixture
def visit(address: str) -> Iterator[tuple]:
    """A page in the browser, and the hosts and console errors seen so far."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    hosts, errors = set(), []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#draw")
        yield page, hosts, errors
        browser.close()


def upload(page: Any, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#upload")
    chooser.value.set_files(path)


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    picture = Image.new("L", (28, 28), "white")
    ImageDraw.Draw(picture).line([(6, 6), (21, 6), (12, 24)], fill=0, width=3)
    picture.save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def test_a_visitor_draws_and_restores_and_nothing_leaves_the_machine(
    visit: tuple, seven: Path, tmp_path: Path
) -> None:
    page, hosts, errors = visit
    page.click("#draw")
    for index in range(2):
        page.locator(".drawn img").nth(index).wait_for()
    page.screenshot(path=tmp_path / "draw.png")
    page.get_by_role("tab", name="Erase and restore").click()
    upload(page, seven)
    page.locator("#pad canvas").first.wait_for()
    page.wait_for_timeout(1500)
    page.locator("#hole").get_by_text("center").click()
    page.click("#restore")
    page.locator(".restored img").wait_for()
    page.get_by_text("It may be a").wait_for()
    page.screenshot(path=tmp_path / "restore.png")
    page.get_by_role("tab", name="Models").click()
    page.get_by_text("test bits/dim").first.wait_for()
    assert hosts - {None} == {"127.0.0.1"}  # None: data and blob addresses
    assert not errors


def test_a_digit_drawn_with_the_mouse_is_restored(visit: tuple, tmp_path: Path) -> None:
    page, _, errors = visit
    page.get_by_role("tab", name="Erase and restore").click()
    canvas = page.locator("#pad canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1000)
    box = canvas.bounding_box()
    for index, (x, y) in enumerate([(0.4, 0.3), (0.6, 0.3), (0.5, 0.8)]):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=10)
        if index == 0:
            page.mouse.down()
    page.mouse.up()
    page.locator("#hole").get_by_text("center").click()
    page.click("#restore")
    page.get_by_text("It may be a").wait_for()
    page.screenshot(path=tmp_path / "mouse.png")
    assert not errors


def test_a_bad_upload_and_bad_digits_get_a_message(visit: tuple, tmp_path: Path) -> None:
    page, hosts, _ = visit
    page.fill("#digits textarea, #digits input", "seven")
    page.click("#draw")
    page.get_by_text("expected 1 to 8 of 0 to 9").wait_for()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    page.get_by_role("tab", name="Erase and restore").click()
    upload(page, tmp_path / "bad.png")
    page.get_by_text("is no picture that can be read").wait_for()
    assert hosts - {None} == {"127.0.0.1"}


def test_two_visitors_draw_at_once_and_cancelling_stops_the_model(
    visit: tuple, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"steps": 0, "stopped": 0}

    def slow(self: Patch, cond: Any, seeds: Any, how: Any, keep: Any = None) -> Iterator[Tensor]:
        try:
            for _ in range(300):
                time.sleep(0.05)
                seen["steps"] += 1
                yield torch.full((len(seeds), 1, 28, 28), 99, dtype=torch.uint8)
        finally:
            seen["stopped"] += 1

    monkeypatch.setattr(Patch, "steps", slow)
    first, _, _ = visit
    second = first.context.browser.new_page()
    second.goto(address)
    for page in (first, second):
        page.click("#draw")
    for page in (first, second):
        page.locator(".drawn img").nth(1).wait_for()
    assert not seen["stopped"]
    for page in (first, second):
        page.click("#draw-cancel")
    first.wait_for_timeout(1500)
    steps = seen["steps"]
    first.wait_for_timeout(1000)
    assert seen["steps"] == steps
    assert steps < 4 * 300


# --- without a browser ---


def test_two_models_draw_side_by_side_and_say_what_they_ignore(tiny_checkpoint: Path) -> None:
    filled = shelf.fill({"a": tiny_checkpoint, "b": tiny_checkpoint})
    *_, (note, pictures) = draw_tab.draw(filled, "71", 2, 0, 1.0, 1.0, 5)
    assert "num_steps" in note
    assert len(pictures) == 2
    assert pictures[0].tobytes() == pictures[1].tobytes()
    with pytest.raises(ValueError, match="digits are 'x'"):
        next(draw_tab.draw(filled, "x", 1, 0, 1.0, 1.0, 0))


def test_red_on_the_pad_is_the_hole() -> None:
    pad = Image.new("RGB", (280, 280), "white")
    ImageDraw.Draw(pad).rectangle([100, 60, 120, 220], fill=restore_tab.INK_COLOR)
    ImageDraw.Draw(pad).rectangle([0, 140, 279, 279], fill=restore_tab.HOLE_COLOR)
    image, keep = restore_tab.read_pad({"composite": pad}, 28)
    assert image.max() == 255
    assert image[0, 0, 0] == 0
    assert keep[0, :14].all()
    assert not keep[0, 14:].any()
    with pytest.raises(ValueError, match="the pad is empty"):
        restore_tab.read_pad({"composite": Image.new("RGB", (280, 280), "white")}, 28)


def test_a_model_that_does_not_load_is_left_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    filled = shelf.fill({"good": tiny_checkpoint, "broken": broken})
    assert list(filled.models) == ["good"]
    assert "broken is left out" in filled.complaints[0]
    with pytest.raises(ValueError, match="no model to draw with"):
        shelf.fill({"broken": broken})


def test_the_last_canvas_is_never_dropped() -> None:
    assert list(shelf.together([iter([1, 2, 3]), iter([4])]))[-1] == [3, 4]


def test_a_taken_port_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["demo", "--port", str(port)]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err


def test_without_the_extra_it_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert cli.main(["demo", "--port", str(port)]) == 2
    assert "pip install 'mnist-transformer[web]'" in capsys.readouterr().err
