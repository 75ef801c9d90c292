"""The hub, as far as it can be tried without one: addresses, the cache, what gets published."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import Timeout
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import WeakFileLock

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


def test_push_uploads_checkpoints_only(monkeypatch, tiny_checkpoint, tmp_path):
    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))

        def upload_file(self, **what):
            calls.append(what)
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(hub, "HfApi", Api)
    assert hub.push(tiny_checkpoint, "someone/digits") == "https://hub/commit/1"
    assert calls[0] == ("someone/digits", {"exist_ok": True, "private": False})
    assert calls[1]["path_in_repo"] == "model.safetensors"
    foreign = tmp_path / "x.safetensors"
    foreign.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        hub.push(foreign, "someone/digits")
    assert len(calls) == 2
