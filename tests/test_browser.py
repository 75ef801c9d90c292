"""The demo as a visitor meets it, in a real browser.

The server is the command itself, in a process of its own: nothing of it can outlive a test,
and the tests' process has no thread to wait for. They run one after another, apart from the
others (see the Makefile). Waits have generous ends, since a machine may be busy.

MNIST_TRANSFORMER_SCREENSHOTS names a folder to keep the pictures of the pages in.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
from helpers import TINY_PROMPTED
from PIL import Image, ImageDraw

from mnist_transformer.models import checkpoint

pytest.importorskip("gradio", reason="needs gradio: the extra [web]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

CHROMIUM = shutil.which("chromium")
START_SECONDS, WAIT_SECONDS = 200, 60

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium package"),
]

# The command over a model that takes its time and says so.
SLOW = """
import sys, threading, time, torch
from mnist_transformer import cli
from mnist_transformer.models.patch.model import Patch

def steps(self, cond, seeds, how=None, keep=None):
    for _ in range(1 if threading.current_thread().name == "examples" else 1200):
        time.sleep(0.05)
        print("step", flush=True)
        yield torch.full((len(seeds), 1, 28, 28), 99, dtype=torch.uint8)

Patch.steps = steps
sys.exit(cli.main(sys.argv[1:]))
"""


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return answer


@contextmanager
def served(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[str]:
    """The address of a demo that runs meanwhile, and writes what it says to a file."""

    def address() -> str | None:
        assert process.poll() is None, log.read_text()
        said = [line for line in log.read_text().splitlines() if "http://" in line]
        return said[0].split()[4] if said else None

    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "demo", "--port", "0", *arguments],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield until(address, START_SECONDS, f"the demo, which said {log.read_text()!r}")
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def trap() -> Iterator[socket.socket]:
    """A proxy that nobody should turn to."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield listening


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, trap: socket.socket) -> Iterator[str]:
    """The demo of what is shipped."""
    proxy = f"http://127.0.0.1:{trap.getsockname()[1]}"
    environment = {f"{kind}_proxy": proxy for kind in ("http", "https", "all")} | {"no_proxy": ""}
    environment |= {name.upper(): value for name, value in environment.items()}
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    with served(["-m", "mnist_transformer.cli"], log, environment) as place:
        yield place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=1000 * WAIT_SECONDS
        )
        yield browser
        browser.close()


class Visit:
    """A page of the demo, and the hosts and console errors seen so far."""

    def __init__(self, browser: Any, address: str) -> None:
        self.hosts: set[str | None] = set()
        self.errors: list[str] = []
        self.context = browser.new_context(viewport={"width": 1100, "height": 720})
        self.page = page = self.context.new_page()
        page.set_default_timeout(1000 * WAIT_SECONDS)
        page.on("request", lambda request: self.hosts.add(urlparse(request.url).hostname))
        page.on("console", self.hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#draw")

    def hear(self, said: Any) -> None:
        # A request that is refused before it waits has the status 422, and an upload 400.
        refused = "status of 4" in said.text
        if said.type == "error" and not refused:
            self.errors.append(said.text)

    def upload(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#upload")
        chooser.value.set_files(path)

    def click(self, button: str, kind: str) -> None:
        """Click, and wait until there is another picture of this kind than the example's."""
        self.page.locator(f".{kind} img").first.wait_for()
        source = f"document.querySelector('.{kind} img')?.src"
        old = self.page.evaluate(source)
        self.page.click(button)
        self.page.wait_for_function(f"old => ![undefined, old].includes({source})", arg=old)

    def drag(self, *places: tuple[float, float]) -> None:
        """With the mouse over the pad, places being shares of its width and height."""
        pad = self.page.locator("#pad canvas").first
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        for index, (x, y) in enumerate(places):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=9)
            if index == 0:
                self.page.mouse.down()
        self.page.mouse.up()

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab).click()
        if tab == "Erase and restore":
            self.page.locator("#pad canvas").first.wait_for()
            self.page.locator(".restored img").wait_for()  # and the pad has the example
            self.page.wait_for_timeout(1000)  # the pad draws itself

    def blank(self) -> None:
        self.page.click("#blank")
        self.page.wait_for_timeout(2000)

    def check(self) -> None:
        """Nothing was asked of other machines, and nothing went wrong."""
        assert self.hosts - {None} == {"127.0.0.1"}  # None: data and blob addresses
        assert not self.errors


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    visit.context.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    return Path(os.environ.get("MNIST_TRANSFORMER_SCREENSHOTS", tmp_path))


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    picture = Image.new("L", (280, 280), "white")
    ImageDraw.Draw(picture).line([(90, 70), (190, 80), (130, 220)], fill=0, width=22, joint="curve")
    picture.save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def test_a_visitor_draws_a_seven(
    visit: Visit, screenshots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = visit.page
    page.evaluate("""() => {
        let last = null;
        window.shown = [];
        new MutationObserver(() => {
            const picture = document.querySelector(".drawn img");
            if (picture && picture.src !== last)
                window.shown.push(performance.now());
            last = picture?.src;
        }).observe(document.body, {subtree: true, childList: true, attributes: true});
        document.querySelector("#draw").addEventListener(
            "click", () => { window.shown = []; window.clicked = performance.now(); });
    }""")
    visit.click("#draw", "drawn")
    # The example of the tab is drawn already: wait for a picture of this visitor's own.
    page.wait_for_function("window.shown.length > 0", timeout=60_000)
    seconds = page.evaluate("(window.shown[0] - window.clicked) / 1000")
    with capsys.disabled():
        print(f"\nclick to first picture: {seconds:.1f} s")
    assert seconds < 30  # 3 s on two idle cores
    last = None
    while last != (last := page.evaluate("window.shown.length")):
        page.wait_for_timeout(3000)
    assert last > 1, "the drawing does not stream"
    page.screenshot(path=screenshots / "demo.png", full_page=True)
    visit.check()


def test_a_visitor_erases_the_centre_and_sees_completions(
    visit: Visit, seven: Path, screenshots: Path
) -> None:
    page = visit.page
    visit.open("Erase and restore")
    visit.upload(seven)
    page.wait_for_timeout(2000)  # the pad shows it
    page.locator("#hole").get_by_text("center").click()
    visit.click("#restore", "restored")
    page.get_by_text("It may be a").wait_for()
    page.screenshot(path=screenshots / "demo-upload.png", full_page=True)
    visit.check()


def test_a_digit_drawn_with_the_mouse_and_painted_over_is_restored(
    visit: Visit, screenshots: Path
) -> None:
    page = visit.page
    visit.open("Erase and restore")
    visit.blank()
    visit.drag((0.4, 0.3), (0.6, 0.3), (0.5, 0.8))
    page.locator("#pad").get_by_role("button", name="Color").click()
    page.locator("#pad button.color").nth(1).click()  # red
    visit.drag((0.45, 0.7), (0.6, 0.8))
    visit.click("#restore", "restored")
    page.get_by_text("It may be a").wait_for()
    page.screenshot(path=screenshots / "demo-restore.png", full_page=True)
    visit.check()


def test_bad_digits_uploads_and_holes_get_a_message(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    page.fill("#digits textarea, #digits input", "seven")
    page.click("#draw")
    page.get_by_text("digits are 'seven', expected one or more of 0 to 9").wait_for()
    assert not page.locator(".drawn").get_by_text("Error").count()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    visit.open("Erase and restore")
    visit.upload(tmp_path / "bad.png")
    page.get_by_text("is not a picture, expected a PNG or JPEG file").wait_for()
    visit.blank()
    page.click("#restore")
    page.get_by_text("the pad is blank").wait_for()
    visit.drag((0.4, 0.3), (0.6, 0.3), (0.5, 0.8))
    page.click("#restore")
    page.get_by_text("nothing is erased").wait_for()
    visit.open("Draw")
    page.fill("#digits textarea, #digits input", "<img src=//far>")  # text, and no picture
    page.click("#draw")
    page.get_by_text("digits are '<img src=//far>'").wait_for()
    visit.check()


def test_the_models_figures_are_shown(visit: Visit, screenshots: Path) -> None:
    visit.open("Models")
    visit.page.get_by_text("test bits/dim").first.wait_for()
    visit.page.locator(".plot canvas, .plot svg.marks").first.wait_for()
    visit.page.screenshot(path=screenshots / "demo-models.png", full_page=True)
    visit.check()


def test_two_draw_at_once_a_third_waits_and_cancelling_stops_the_model(
    browser: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    log = tmp_path / "log.txt"

    def num_steps() -> int:
        return log.read_text().count("step\n")

    command, models = [str(tmp_path / "slow.py")], ["--models", str(tiny_checkpoint)]
    with served(command, log, arguments=models) as address:
        first, second, third = [Visit(browser, address) for _ in range(3)]
        for visit in (first, second):
            visit.click("#draw", "drawn")
        source = "document.querySelector('.drawn img')?.src"
        third.page.locator(".drawn img").first.wait_for()
        example = third.page.evaluate(source)
        third.page.click("#draw")
        third.page.wait_for_timeout(3000)
        assert third.page.evaluate(source) == example
        for visit in (first, second):
            visit.page.click("#draw-cancel")
        third.page.wait_for_function(f"old => {source} !== old", arg=example)
        third.context.close()  # who leaves has cancelled
        ended = None
        while ended != (ended := num_steps()):
            first.page.wait_for_timeout(2000)
            assert ended < 3 * 1200
        for visit in (first, second):
            visit.check()
            visit.context.close()


def test_a_sentence_is_answered_where_a_model_reads_them(
    browser: Any, tmp_path: Path, screenshots: Path
) -> None:
    model = TINY_PROMPTED.build()
    with torch.no_grad():
        model.patch.answer.bias[7] = 5.0  # it reads 77 in everything
    checkpoint.save(model, tmp_path / "reads.safetensors")
    command = ["-m", "mnist_transformer.cli"]
    models = ["--models", str(tmp_path / "reads.safetensors")]
    with served(command, tmp_path / "log.txt", arguments=models) as address:
        visit = Visit(browser, address)
        visit.open("Ask")
        visit.page.fill("#prompt textarea, #prompt input", "")
        visit.page.click("#ask")
        visit.page.get_by_text("the prompt is empty").wait_for()
        visit.page.fill("#prompt textarea, #prompt input", "Show me 70 + seven")
        visit.page.click("#ask")
        visit.page.get_by_text("reads.safetensors reads 77.").wait_for()
        visit.page.locator(".drawn img:visible").first.wait_for()
        visit.page.screenshot(path=screenshots / "demo-ask.png", full_page=True)
        visit.check()
        visit.context.close()


def test_nothing_has_left_the_machine(address: str, trap: socket.socket) -> None:
    """Last: the server asked no proxy for anything, in all of the above."""
    with pytest.raises(BlockingIOError):
        trap.accept()
