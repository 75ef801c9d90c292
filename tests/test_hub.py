"""The hub, as far as it can be tried without one: addresses, the cache, what gets published."""

import json
import os
import subprocess
import sys
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import ClassVar

import pytest
from filelock import Timeout
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import WeakFileLock

from mnist_transformer import cli
from mnist_transformer.models import hub, loading


def http_error(status: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = SimpleNamespace(status_code=status)
    error.args = ("Server Error\n\nmore of it",)
    return error


@pytest.fixture
def asked_once(monkeypatch):
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url: None)


def test_load_draws_with_what_was_downloaded(monkeypatch, tiny_checkpoint, asked_once):
    asked = []

    def fake(repo_id, filename, *, revision):
        asked.append((repo_id, filename, revision))
        return str(tiny_checkpoint)

    monkeypatch.setattr(hub, "hf_hub_download", fake)
    model = loading.load("hf://someone/digits@v2")
    assert model.sample([1], [0]).shape == (1, *model.image_shape)
    assert asked == [("someone/digits", "model.safetensors", "v2")]


def test_a_wrong_address_is_refused():
    with pytest.raises(ValueError, match=r"address is 'hf://a/b/c/d', expected hf://owner/name"):
        hub.download("hf://a/b/c/d")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("no socksio"), f"the hub at {constants.ENDPOINT} cannot be reached: no socks"),
        (ConnectionError("refused"), "hf://a/b is not in the cache and the hub at"),
        (http_error(503), "cannot be reached: "),
        (http_error(404), r"hf://a/b has no model\.safetensors that can be read here"),
    ],
)
def test_what_the_hub_cannot_give_is_one_sentence(monkeypatch, tmp_path, error, message):
    def fake(url):
        raise error

    monkeypatch.setattr(hub, "get_hf_file_metadata", fake)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=message) as raised:
        hub.download("hf://a/b")
    assert "\n" not in str(raised.value)


def test_the_cache_serves_where_the_hub_cannot_be_reached(monkeypatch, tiny_checkpoint):
    def fail(url):
        raise ConnectionError("refused")

    def cached(repo_id, filename, *, revision, local_files_only):
        assert local_files_only
        return str(tiny_checkpoint)

    monkeypatch.setattr(hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(hub, "hf_hub_download", cached)
    assert hub.download("hf://a/b") == tiny_checkpoint


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "cannot be reached: "),
        ("HF_ENDPOINT", "hub.example", "the hub at hub.example cannot be reached: "),
        ("HF_ENDPOINT", "http://[::1", "HF_ENDPOINT, 'http://[::1', or another HF_ variable is"),
        ("HF_ENDPOINT", "http://127.0.0.1:99999", "or another HF_ variable is wrong: Port out of"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "x", "or another HF_ variable is wrong: invalid literal"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "the hub at http://127.0.0.1:9 cannot be reached: "),
    ],
)
def test_a_network_that_is_not_one_is_one_sentence_soon(tmp_path, variable, value, message):
    done = subprocess.run(
        [sys.executable, "-m", "mnist_transformer", "draw", "3", "--model", "hf://a/b"],
        env={**os.environ, "HF_HOME": str(tmp_path), variable: value},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_lock_of_the_hub_is_waited_for_in_words(
    monkeypatch, tmp_path, caplog, asked_once, tiny_checkpoint
):
    def locked(repo_id, filename, *, revision):
        again = WeakFileLock(tmp_path / "lock", timeout=0.3)
        with WeakFileLock(tmp_path / "lock"), pytest.raises(Timeout), again:
            pass
        return str(tiny_checkpoint)

    monkeypatch.setattr(constants, "FILELOCK_LOG_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(hub, "hf_hub_download", locked)
    hub.download("hf://a/b")
    assert "Still waiting to acquire lock on" in caplog.text


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push and a pull need."""

    files: ClassVar[dict[str, bytes]] = {}
    refuses = False

    def log_message(self, *_):
        pass

    def answer(self, content=b"", status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refuses:
            return self.answer(b"{}", 401)
        action, found = self.path.split("/")[-2 if "main" in self.path else -1], {}
        if action == "create":
            found = {"url": "https://huggingface.co/someone/digits"}
        elif action == "preupload":
            kinds = {"uploadMode": "regular", "shouldIgnore": False}
            found = {"files": [{"path": x["path"], **kinds} for x in json.loads(body)["files"]]}
        elif action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = b64decode(line["value"]["content"])
            found = {
                "commitUrl": "https://huggingface.co/someone/digits/commit/1",
                "commitOid": "1",
                "success": True,
            }
        self.answer(json.dumps(found).encode(), Content_Type="application/json")

    def do_GET(self):
        content = self.files.get(self.path.rpartition("/")[2])
        if content is None:
            return self.answer(status=404, X_Error_Code="EntryNotFound")
        self.answer(content, ETag='"1"', X_Repo_Commit="1" * 40)

    do_HEAD = do_GET


@pytest.fixture
def loopback():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def run(loopback, monkeypatch, tmp_path, capsys):
    """A command's exit code and its words, with the hub at an address, the loopback's if none."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.chdir(tmp_path)

    def run(*arguments, endpoint=loopback):
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        code = cli.main(["hub", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.err if code else captured.out

    return run


def test_what_is_pushed_is_pulled_and_draws(run, tiny_checkpoint):
    commit = "https://huggingface.co/someone/digits/commit/1"
    assert run("push", tiny_checkpoint, "someone/digits") == (0, f"published {commit}\n")
    card = Hub.files["README.md"].decode()
    assert card.startswith("---\n")
    assert "draw 0 --model hf://someone/digits" in card
    assert run("pull", "someone/digits") == (0, "saved digits.safetensors\n")
    assert Path("digits.safetensors").read_bytes() == tiny_checkpoint.read_bytes()
    assert run("pull", "someone/digits")[0] == 2
    own = Path("card.md")
    own.write_text("# Mine\n")
    assert run("push", tiny_checkpoint, "someone/digits", "--card", own)[0] == 0
    assert Hub.files["README.md"] == b"# Mine\n"


def test_a_push_that_fails_is_one_sentence(run, monkeypatch, tiny_checkpoint, tmp_path):
    foreign = tmp_path / "x.safetensors"
    foreign.write_bytes(b"not a checkpoint")
    monkeypatch.setattr(Hub, "refuses", True)
    for arguments, message in (
        ((tiny_checkpoint, "someone/digits"), "the hub refuses someone/digits (status 401)"),
        ((tiny_checkpoint, "a/b/c"), "repository is 'a/b/c', expected owner/name"),
        ((foreign, "someone/digits"), "x.safetensors"),
        ((tmp_path / "none", "someone/digits"), "none does not exist"),
        ((tiny_checkpoint, "a/b", "--card", "none.md"), "card none.md is not a file"),
    ):
        code, words = run("push", *arguments)
        assert (code, words.count("\n")) == (2, 1)
        assert message in words
    code, words = run("push", tiny_checkpoint, "a/b", endpoint="http://127.0.0.1:9")
    assert (code, words.count("\n")) == (2, 1)
    assert "a/b is not published and the hub at http://127.0.0.1:9 cannot be reached" in words
