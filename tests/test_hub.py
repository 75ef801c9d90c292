"""The hub, as far as it can be tried without one: addresses, the cache, what gets published."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from mnist_transformer.models import hub, loading


def test_load_draws_with_what_was_downloaded(monkeypatch, tiny_checkpoint):
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
        (LocalEntryNotFoundError("no"), "is not in the cache and the hub cannot be reached"),
        (
            RepositoryNotFoundError.__new__(RepositoryNotFoundError),
            r"hf://a/b has no model\.safetensors",
        ),
    ],
)
def test_what_the_hub_cannot_give_is_one_sentence(monkeypatch, error, message):
    def fake(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fake)
    with pytest.raises(ValueError, match=message):
        hub.download("hf://a/b")


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
