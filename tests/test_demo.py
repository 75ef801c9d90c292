"""The demo's parts, without a browser; test_browser.py looks at its page."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import END, TINY, TINY_PATCH, TINY_PROMPTED, make_spec
from PIL import Image, ImageDraw

from mnist_transformer import cli
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.evaluation import ledger
from mnist_transformer.models import checkpoint
from mnist_transformer.options import OPTIONS, PLAIN, Sampling

gradio = pytest.importorskip("gradio", reason="needs gradio: the extra [web]")

from starlette.responses import JSONResponse  # noqa: E402

from mnist_transformer.web import (  # noqa: E402
    dials,
    gate,
    models_tab,
    restore_tab,
    shelf,
    side_by_side,
)


def values(**changed: object) -> list[object]:
    """What all dials say, but for some; an interval has two."""
    said: list[object] = []
    for option in OPTIONS:
        dial = option.metadata["dial"]
        value = changed.get(option.name, option.default)
        value = (dial.none if dial.choices else dial.low) if dial.none and value is None else value
        said += value if isinstance(value, tuple) else [value]
    return said


def test_dials_say_what_the_options_are(tiny_checkpoint: Path) -> None:
    assert dials.read([3, *values()]) == (3, PLAIN)
    how = Sampling(
        temperature=0.5,
        top_k=9,
        num_steps=7,
        sampler="heun",
        guidance_interval=(0.25, 0.75),
        num_particles=4,
    )
    assert dials.read([0, *values(**vars(how))]) == (0, how)
    models = list(shelf.fill({"a": tiny_checkpoint}).models.values())
    _, *made = dials.dials(models, start=how)
    assert [dial.value for dial in made] == values(**vars(how))
    assert len(dials.refit(models)) == len(made) == len(OPTIONS) + 1
    shown = {dial.label for dial in made if dial.visible} | {"Seed"}
    assert shown == {"Seed", "Temperature", "Top k", "Top p", "Guidance"}
    kept = {dial.label for dial in dials.dials(models, keeping=True) if dial.visible}
    assert kept == shown | {"Particles"}


def test_steps_are_as_many_as_all_models_take() -> None:
    pixel, ddpm, mar = (TINY[name].build() for name in ("pixel", "ddpm", "mar"))

    def most(*models: object) -> float:
        return next(dial.maximum for dial in dials.dials(models) if dial.label == "Steps")

    assert most(pixel, ddpm) == 100
    assert most(pixel, ddpm, mar) == mar.max_steps < 100


def test_two_models_draw_side_by_side_and_say_what_they_ignore(tiny_checkpoint: Path) -> None:
    filled = shelf.fill({"a": tiny_checkpoint, "b": tiny_checkpoint})
    *_, (note, pictures) = side_by_side.draw(filled.models, "71", 2, 0, *values(num_steps=5))
    assert note == "a does not use steps. b does not use steps."
    assert len(pictures) == 2
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text", "x", "digits are 'x', expected one or more of 0 to 9"),
        ("text", "123456789", "expected 1 to 8"),
        ("times", 1e9, "how many times is 1000000000.0, expected a whole number from 1 to 9"),
        ("times", float("nan"), "how many times is nan"),
        ("times", 2.5, "how many times is 2.5, expected a whole number"),
        ("temperature", 0, "temperature is 0, expected"),
        ("temperature", None, "temperature is None, expected a number from 0.1 to 2"),
        ("guidance", -1, "guidance is -1, expected"),
        ("num_steps", 101, "steps is 101, expected a whole number from 0 to 100"),
        ("guidance_interval", (0.5, 0.5), "expected 0 <= low < high <= 1"),
        ("seed", None, "seed is None, expected"),
        ("seed", -1, "seed is -1, expected a whole number"),
    ],
)
def test_wrong_numbers_get_a_sentence(
    tiny_checkpoint: Path, field: str, value: object, message: str
) -> None:
    given = {"text": "7", "times": 1, "seed": 0, field: value}
    fields = [given.pop(name) for name in ("text", "times", "seed")]
    models = shelf.fill({"a": tiny_checkpoint}).models
    with pytest.raises(ValueError, match=message):
        next(side_by_side.draw(models, *fields, *values(**given)))


def test_one_digit_many_times_makes_a_square(tiny_checkpoint: Path) -> None:
    models = shelf.fill({"a": tiny_checkpoint}).models
    *_, (_, [picture]) = side_by_side.draw(models, "7", 9, 0, *values())
    assert picture.width == picture.height


def test_a_model_without_the_class_leaves_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    spec = replace(make_spec(), class_names=("cat", "dog"))
    checkpoint.save(replace(TINY_PATCH, data=spec).build(), tmp_path / "b")
    filled = shelf.fill({"a": tiny_checkpoint, "b": tmp_path / "b"})
    *_, (note, pictures) = side_by_side.draw(filled.models, "dog", 2, 0, *values())
    assert note.startswith("a cannot draw this: digits are 'dog'")
    assert pictures[0] is None
    assert pictures[1] is not None


def test_the_best_model_stands_first_in_the_table() -> None:
    rows = {row["recipe"]: row for row in ledger.rows() if "images_per_second" in row["metrics"]}
    table = models_tab.figures(rows.values())
    assert sorted(table["model"]) == sorted(rows)
    assert table["fd_cnn"].is_monotonic_increasing
    scan = table.set_index("model").loc["mnist-scan"]
    assert (scan["is"], scan["test bits/dim"]) == ("bound", pytest.approx(0.29, abs=0.01))
    assert scan[models_tab.SPEED] > scan["images/s at batch 1"]


def test_who_can_be_asked_answers_and_who_refuses_has_no_picture(tmp_path: Path) -> None:
    for name, symbol in [("seven", 7), ("nothing", END)]:
        model = TINY_PROMPTED.build()
        with torch.no_grad():
            model.patch.answer.bias[symbol] = 5.0
        checkpoint.save(model, tmp_path / name)
    filled = shelf.fill({name: tmp_path / name for name in ("seven", "nothing")})
    *_, (note, pictures) = side_by_side.answer(filled.asked, "Draw 77", 0, *values(guidance=2.0))
    assert note.startswith("seven reads 77. nothing refuses. Ask for a number")
    assert pictures[0].width == 2 * pictures[0].height
    assert pictures[1] is None
    with pytest.raises(ValueError, match="empty"):
        next(side_by_side.answer(filled.asked, " ", 0, *values()))


def test_the_example_loads_no_language_model() -> None:
    patch = TINY_PATCH.build()

    class Adapter:
        is_loaded, drawer = False, patch

        def conditions(self, texts: list[str], answers: list[tuple[int, ...]]) -> torch.Tensor:
            return torch.tensor(answers[0])

    request = {"adapter": Adapter()}, "twice 21", 0, *values()
    *_, (note, [picture]) = side_by_side.answer(*request, loads=False)
    assert note == "adapter loads a language model when it is asked."
    assert picture.width == 2 * picture.height


def test_an_example_is_drawn_once_for_all_who_come(tiny_checkpoint: Path) -> None:
    models = shelf.fill({"a": tiny_checkpoint}).models
    with gradio.Blocks():
        example = restore_tab.build(models)

    async def seen() -> list[list[Any]]:
        return [values async for values in example._watch()]

    example.run()
    (first,), (second,) = asyncio.run(seen()), asyncio.run(seen())
    _, sheet, pad = first
    assert sheet.tobytes() == second[1].tobytes()
    assert sheet.info["drawing"] != second[1].info["drawing"]
    image, keep = restore_tab.read_pad({"composite": pad}, MNIST)
    assert image.any()
    assert not keep.all()


def one() -> Image.Image:
    """A 1 on the pad."""
    pad = Image.new("RGB", (280, 280), "white")
    ImageDraw.Draw(pad).rectangle([100, 60, 120, 220], fill=restore_tab.INK_COLOR)
    return pad


def test_restoring_takes_particles_where_a_model_has_them(tiny_checkpoint: Path) -> None:
    models = shelf.fill({"a": tiny_checkpoint}).models
    request = (models, "a", {"composite": one()}, "bottom")
    *_, (_, [sheet]) = restore_tab.restore(*request, "1", 0, *values(guidance=2.0, num_particles=2))
    assert sheet is not None
    with pytest.raises(ValueError, match="particles is 999, expected a whole number"):
        next(restore_tab.restore(*request, "1", 0, *values(num_particles=999)))
    with pytest.raises(ValueError, match="expected 1 where no class is given"):
        next(restore_tab.restore(*request, restore_tab.UNKNOWN, 0, *values(guidance=2.0)))


def test_red_on_the_pad_is_the_hole() -> None:
    pad = one()
    ImageDraw.Draw(pad).rectangle([0, 140, 279, 279], fill=restore_tab.HOLE_COLOR)
    image, keep = restore_tab.read_pad({"composite": pad}, MNIST)
    assert image.max() == 255
    assert image[0, 0, 0] == 0
    assert keep[0, :14].all()
    assert not keep[0, 14:].any()
    with pytest.raises(ValueError, match="the pad is blank"):
        restore_tab.read_pad({"composite": Image.new("RGB", (280, 280), "white")}, MNIST)
    with pytest.raises(ValueError, match="the pad has over 4,000,000 pixels"):
        restore_tab.read_pad({"composite": Image.new("1", (9000, 9000))}, MNIST)


def test_a_photograph_is_uploaded_in_colour_and_its_reds_are_kept(tmp_path: Path) -> None:
    data = make_spec(8, 3, channels=3, background=None)
    Image.new("RGB", (80, 40), (200, 20, 10)).save(tmp_path / "car.png")
    pad = restore_tab.read_upload(tmp_path / "car.png", data)
    assert pad.size == (restore_tab.PAD, restore_tab.PAD)
    ImageDraw.Draw(pad).rectangle([0, 140, 279, 279], fill=restore_tab.HOLE_COLOR)
    image, keep = restore_tab.read_pad({"composite": pad}, data)
    assert image[:, 0, 0].tolist() == [200, 20, 10]
    assert keep[0, :4].all()
    assert not keep[0, 4:].any()
    checkpoint.save(replace(TINY["ddpm"], data=data).build(), tmp_path / "c")
    models = shelf.fill({"c": tmp_path / "c"}).models
    *_, (_, [sheet]) = restore_tab.restore(
        models, "c", {"composite": pad}, "top", "1", 0, *values()
    )
    assert sheet.mode == "RGB"


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


def test_two_models_of_one_name_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / tiny_checkpoint.name
    other.write_bytes(tiny_checkpoint.read_bytes())
    command = ["demo", "--port", "0", "--models", str(tiny_checkpoint), str(other)]
    assert cli.main(command) == 2
    assert "expected distinct names" in capsys.readouterr().err


def test_without_the_extra_it_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert cli.main(["demo", "--port", str(port)]) == 2
    assert "pip install 'mnist-transformer[web]'" in capsys.readouterr().err


def request(path: str, body: bytes = b"", *, boundary: str = "") -> dict[str, Any]:
    kind = f"multipart/form-data; boundary={boundary}" if boundary else "application/json"
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"session_hash=here",
        "headers": [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
        ],
        "body": body,
    }


async def passed(guard: gate.Gate, scope: dict[str, Any]) -> tuple[int, str]:
    """Status and text of an answer."""
    said: list[Any] = []
    parts = [{"type": "http.request", "body": scope.pop("body")}]

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await guard({"server": ("127.0.0.1", 80), **scope}, receive, send)
    return said[0]["status"], said[-1].get("body", b"").decode()


class Queue:
    """Stands for gradio's."""

    def __init__(self) -> None:
        self.cleaned: list[str] = []

    async def clean_events(self, *, session_hash: str) -> None:
        self.cleaned.append(session_hash)


@pytest.fixture
def guarded() -> tuple[gate.Gate, list[bytes], Queue]:
    """A gate, the bodies that it lets through, and the queue that its page has."""
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        if scope["path"].endswith("heartbeat/broken"):
            raise KeyError("fn_index")
        await JSONResponse("passed")(scope, receive, send)

    queue = Queue()
    return gate.Gate(app, SimpleNamespace(_queue=queue)), bodies, queue


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring/summary",
        "/gradio_api/openapi.json",
        "/gradio_api/call/draw",
        "/gradio_api/proxy=http://far",
        "/gradio_api/vibe-code",
    ],
)
def test_what_the_page_does_not_need_is_not_there(guarded: Any, path: str) -> None:
    assert asyncio.run(passed(guarded[0], request(path)))[0] == 404
    assert not guarded[1]


def test_a_request_that_gradio_stumbles_over_is_refused(guarded: Any) -> None:
    status, said = asyncio.run(passed(guarded[0], request("/gradio_api/heartbeat/broken")))
    assert (status, said) == (400, """{"detail":"the request is refused: 'fn_index'"}""")


def form(*files: tuple[str, bytes], **values: str) -> bytes:
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in values.items()]
    for name, content in files:
        parts.append(f'name="files"; filename="{name}"\r\n\r\n'.encode() + content)
    head = b"--x\r\nContent-Disposition: form-data; "
    return b"".join(head + part + b"\r\n" for part in parts) + b"--x--\r\n"


def test_pictures_alone_are_uploaded_and_few(guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, bodies, _ = guarded
    content = io.BytesIO()
    one().save(content, "PNG")
    picture = "a.png", content.getvalue()

    def said(body: bytes, path: str = "/gradio_api/upload") -> str:
        return asyncio.run(passed(guard, request(path, body, boundary="x")))[1]

    good = form(picture, index="0")
    assert said(good) == '"passed"'
    assert bodies == [good]
    assert "a.png is not a picture, expected a PNG" in said(form(("a.png", b"<script>")))
    assert "Too many files" in said(form(*[picture] * 5))
    assert "over 10,000,000 bytes" in said(form(("a.png", bytes(10_000_000))))
    assert "more layers than the pad" in said(form(picture, index="999999999"))
    for size, path in (
        (8000, "/gradio_api/upload"),
        (20_000, "/gradio_api/upload"),  # more than Pillow opens
        (2001, "/gradio_api/component_server/"),
    ):
        content = io.BytesIO()
        Image.new("1", (size, size)).save(content, "PNG")
        assert "pixels, expected fewer" in said(form(("a.png", content.getvalue())), path)
    monkeypatch.setattr(gate, "MAX_KEPT", 2 * len(good))
    assert "too many uploads, try again" in said(good)
    assert len(bodies) == 1


def test_who_joins_and_does_not_listen_is_dropped(
    guarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, _, queue = guarded
    monkeypatch.setattr(gate, "SILENT_SECONDS", 1)

    async def join(session: bytes) -> None:
        await passed(guard, request("/gradio_api/queue/join", b'{"session_hash": "%b"}' % session))

    asyncio.run(join(b"silent"))
    assert queue.cleaned == ["silent"]
    guard.listening["here"] += 1
    asyncio.run(join(b"here"))
    assert queue.cleaned == ["silent"]


def test_the_pads_pictures_are_read_twice() -> None:
    blobs = restore_tab.Blobs(2)
    for key in "abc":
        blobs[key] = key.upper()
    assert blobs.pop("c") == blobs.pop("c") == "C"
    assert list(blobs) == ["b", "c"]


def asked(address: str, data: Sequence[object], path: str = "queue/join") -> tuple[int, str]:
    """The answer to joining the queue of the first tab with these values, or to another path."""
    body = {"data": data, "fn_index": 1, "session_hash": "x"}  # 0 shows the example
    call = urllib.request.Request(
        f"{address}/gradio_api/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(call, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_is_served_without_a_proxy_and_from_a_folder_of_its_own(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """And a request is checked before it waits."""
    (tmp_path / "gradio").write_text("the folder of somebody else")
    done = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mnist_transformer",
            "demo",
            "--port=0",
            f"--models={tiny_checkpoint}",
        ],
        env={**os.environ, "ALL_PROXY": "socks5://127.0.0.1:9", "TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.stdout is not None
    try:
        assert done.stdout.readline().startswith("loading the models")
        said = done.stdout.readline()
        assert said.startswith("the demo is at http://127.0.0.1:")
        assert len(list(tmp_path.glob("gradio-*"))) == 1
        address, others = said.split()[4], values()
        assert asked(address, ["7", 1, 0, *others])[0] == 200
        status, answer = asked(address, ["7", 1, 0, *others], "run/predict")
        assert status == 404  # it would pass all who wait
        assert "Please join the queue" in answer
        for wrong, sentence in [
            (["x", 1, 0, *others], "digits are 'x', expected one or more of 0 to 9"),
            (["7", 10, 0, *others], "Value 10 is greater than maximum value 9."),
            (["7", "x", 0, *others], "the request has a value of the wrong kind"),
            (["7", 1, None, *others], "Seed is empty, expected a value"),
            (["7", 1, "x", *others], "seed is x, expected a whole number from 0"),
            (["7", 1], "the request has a value of the wrong kind"),
            ([{"path": "http://far/x.png"}, 1, 0, *others], "a picture is at an address"),
        ]:
            status, answer = asked(address, wrong)
            assert status == 422
            assert sentence in answer
    finally:
        done.send_signal(signal.SIGTERM)
        output, _ = done.communicate(timeout=60)
    assert done.returncode == 0
    assert "Traceback" not in output
    assert not list(tmp_path.glob("gradio-*"))


def test_the_address_answers_while_the_models_load() -> None:
    from mnist_transformer.commands.demo import _answer_while_loading

    server = _answer_while_loading("127.0.0.1", 0)
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=10)
    server.shutdown()
    server.server_close()
    assert answer.value.code == 503
    assert "The models are loading" in answer.value.read().decode()
    answer.value.close()
