"""Visitors of the demo, all at once, with good and bad requests: does everyone get an answer?

They speak to the server as its page does: join the queue, then listen.
"""

import io
import json
import random
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw

from mnist_transformer.models.loading import load
from mnist_transformer.utils.images import columns_for, enlarge, grid
from tools.hard import SECONDS, TRACEBACK, Lines, python

MODEL, ASKED = "mnist-scan", "mnist-prompt-scratch"
DRAW, RESTORE, ASK = "Draw", "Restore", "Ask"
WISHES = [("7", 1, 0), ("42", 1, 1), ("3", 4, 2), ("123", 1, 3)]  # digits, times, seed
SENTENCES = ["Show me 2 + four", "twice 21", "draw a 7"]
GOOD, BAD, SILENT = "good", "bad", "silent"


@contextmanager
def served(log: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a demo, and its process, which is terminated in the end."""
    command, environment = python(
        "-u", "-m", "mnist_transformer", "demo", "--port", "0", "--models", MODEL, ASKED
    )
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        until = time.monotonic() + 3 * SECONDS
        while "http://" not in log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                raise ValueError(f"the demo did not start: {log.read_text()[-500:]}")
            time.sleep(0.2)
        yield log.read_text().partition("http://")[2].split()[0], process
    finally:
        process.terminate()
        process.wait(SECONDS)


class Page:
    """The page's own config: functions by the button that starts them, and their inputs' values."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(
            base_url=f"http://{address}", timeout=4 * SECONDS, trust_env=False
        )
        config = self.client.get("/config").raise_for_status().json()
        parts = {part["id"]: part["props"] for part in config["components"]}
        self.values: dict[str, list[Any]] = {}
        self.functions: dict[str, int] = {}
        self.pad = next(x["id"] for x in config["components"] if x["type"] == "imageeditor")
        for function in config["dependencies"]:
            names = [parts[x].get("value") for x, event in function["targets"] if event == "click"]
            # Gradio adds one without inputs to each button, which ends the page's example.
            if names and names[0] in (DRAW, RESTORE, ASK) and function["inputs"]:
                self.functions[names[0]] = function["id"]
                self.values[names[0]] = [parts[x].get("value") for x in function["inputs"]]


class Count:
    """The outcomes of all visitors, counted under a lock."""

    def __init__(self) -> None:
        self.counts = {kind: Counter[str]() for kind in (GOOD, BAD, SILENT)}
        self.served: list[float] = []
        self.waited: list[float] = []
        self._lock = threading.Lock()

    def note(self, kind: str, what: str, served: float | None = None, waited: float = 0) -> None:
        with self._lock:
            self.counts[kind]["requests"] += 1
            self.counts[kind][what] += 1
            if served is not None:
                self.served.append(served)
                self.waited.append(waited)


class Visitor:
    """A visitor, with a seed that decides what it asks for."""

    def __init__(self, page: Page, count: Count, pictures: dict[Any, bytes], seed: int) -> None:
        self.page, self.count, self.pictures = page, count, pictures
        self.rng = random.Random(seed)

    def visit(self, until: float) -> None:
        while time.monotonic() < until:
            kind = self.rng.choices([GOOD, BAD, SILENT], [6, 3, 1])[0]
            try:
                getattr(self, f"ask_{kind}")()
            except httpx.HTTPError as error:
                self.count.note(kind, f"no answer ({type(error).__name__})")
            time.sleep(self.rng.uniform(0, 2))

    def join(self, button: str, data: Any, session: str) -> httpx.Response:
        body = {"data": data, "fn_index": self.page.functions[button], "session_hash": session}
        return self.page.client.post("/gradio_api/queue/join", json=body)

    def ask_silent(self) -> None:
        session = uuid.uuid4().hex
        done = self.join(DRAW, self.page.values[DRAW], session)
        self.count.note(SILENT, "joined" if done.status_code == 200 else "refused")

    def ask_bad(self) -> None:
        values, rng = self.page.values[DRAW], self.rng
        data: Any = list(values)
        data[rng.randrange(len(data))] = rng.choice(
            [
                None,
                "x",
                -1,
                1e99,
                [1],
                {"path": "http://127.0.0.1:9/x.png"},
                {"path": "/etc/passwd"},
            ]
        )
        data[0] = rng.choice(["x", "", "123456789", None, data[0]])
        data = rng.choice([data, data, data, data[:3], "x"])
        if data[0] == values[0] and data[1:] == values[1:]:
            return
        if rng.random() < 0.3:
            bad = {"files": ("a.png", rng.randbytes(100))}
            done = self.page.client.post("/gradio_api/upload", files=bad)
        else:
            done = self.join(DRAW, data, uuid.uuid4().hex)
        sentence = done.status_code in (400, 422) and bool(done.json()["detail"])
        self.count.note(BAD, "refused in a sentence" if sentence else f"{done.status_code}")

    def ask_good(self) -> None:
        button = self.rng.choice([DRAW, DRAW, ASK, RESTORE])
        data, wish, session = list(self.page.values[button]), None, uuid.uuid4().hex
        if button == DRAW:
            wish = self.rng.choice(WISHES)
            data[:3] = wish
        elif button == ASK:
            data[0] = self.rng.choice(SENTENCES)
        else:
            data[:4] = [MODEL, {"id": self.upload(session)}, "bottom", "1"]
        begun = time.monotonic()
        joined = self.join(button, data, session)
        if joined.status_code != 200:
            self.count.note(GOOD, f"status {joined.status_code}")
            return
        started, placed = begun, False
        message: dict[str, Any] = {}
        path = "/gradio_api/queue/data"
        with self.page.client.stream("GET", path, params={"session_hash": session}) as lines:
            for line in lines.iter_lines():
                if not line.strip():
                    continue
                message = json.loads(line.removeprefix("data:"))
                placed |= message["msg"] == "estimation" and message["rank"] is not None
                if message["msg"] == "process_starts":
                    started = time.monotonic()
                if message["msg"] == "process_completed":
                    break
        now = time.monotonic()
        if not message.get("success"):
            said = (message.get("output") or {}).get("error")
            self.count.note(GOOD, "refused" if said else "empty error")
        elif wish and not self.is_right(wish, message["output"]["data"][1]):
            self.count.note(GOOD, "wrong")
        else:
            waited = started - begun
            told = placed or waited < 1
            self.count.note(GOOD, "served" if told else "told no place", now - started, waited)

    def upload(self, session: str) -> str:
        """Put a digit 1 on the pad."""
        picture, name = Image.new("RGB", (280, 280), "white"), uuid.uuid4().hex
        ImageDraw.Draw(picture).rectangle([130, 60, 150, 220], fill="black")
        content = io.BytesIO()
        picture.save(content, "PNG")
        form = {"component_id": self.page.pad, "fn_name": "accept_blobs", "session_hash": session}
        form |= {"id": name, "type": "composite", "index": "null"}
        files = {"file": ("composite.png", content.getvalue())}
        self.page.client.post("/gradio_api/component_server/", data=form, files=files)
        return name

    def is_right(self, wish: tuple[str, int, int], file: dict) -> bool:
        place = "/gradio_api/file=" + file["path"]
        with Image.open(io.BytesIO(self.page.client.get(place).content)) as picture:
            return picture.convert("L").tobytes() == self.pictures[wish]


def expected() -> dict[Any, bytes]:
    """The pixels that each wish is to get from the first model."""
    model, found = load(MODEL, "cpu"), {}
    for digits, times, seed in WISHES:
        labels = list(map(int, digits)) * times
        images = model.sample(labels, range(seed, seed + len(labels)))
        picture = enlarge(grid(images, columns_for(len(digits), times)))
        found[digits, times, seed] = picture.convert("L").tobytes()
    return found


def percentile(values: list[float], share: float) -> float | None:
    return sorted(values)[int(share * (len(values) - 1))] if values else None


def visitors(number: int, seconds: float, folder: Path, seed: int = 0) -> Lines:
    """Let so many visitors ask for so long; then check that the server still runs."""
    log, pictures, count = folder / "demo.txt", expected(), Count()
    with served(log) as (address, process):
        page, until = Page(address), time.monotonic() + seconds
        guests = [Visitor(page, count, pictures, seed + i) for i in range(number)]
        threads = [threading.Thread(target=guest.visit, args=(until,)) for guest in guests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alive = process.poll() is None
    for kind, counts in count.counts.items():
        right = {GOOD: "served", BAD: "refused in a sentence", SILENT: "joined"}[kind]
        others = counts["requests"] - counts[right] - counts["wrong"] - counts["empty error"]
        yield (
            {"requests": kind},
            {
                "number": counts["requests"],
                "answered as they should be": counts[right],
                "wrong": counts["wrong"],
                "empty errors": counts["empty error"],
                "anything else": others,
            },
        )
    yield (
        {"requests": "all"},
        {
            "number": sum(x["requests"] for x in count.counts.values()),
            "drawing, p95 s": percentile(count.served, 0.95),
            "waiting, p95 s": percentile(count.waited, 0.95),
            "tracebacks": log.read_text().count(TRACEBACK),
            "server died": int(not alive),
        },
    )
