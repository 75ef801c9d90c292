"""MNIST from a folder, a cache and mirrors, whole and damaged."""

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from mnist_transformer.data import load_dataset, mnist
from mnist_transformer.data.download import fetch

FILES = ("TRAIN_IMAGES", "TRAIN_LABELS", "TEST_IMAGES", "TEST_LABELS")
NUM_TRAIN, NUM_TEST = 5300, 200


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + (
        values.tobytes()
    )


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A small MNIST, which ``mnist`` takes for the real one: file name -> IDX bytes."""
    monkeypatch.delenv("MNIST_TRANSFORMER_DATA", raising=False)
    random = np.random.default_rng(0)
    made = {}
    for constant in FILES:
        file = getattr(mnist, constant)
        shape = (NUM_TRAIN if "TRAIN" in constant else NUM_TEST, *file.shape[1:])
        high = 10 if len(shape) == 1 else 4  # few values: quick to compress
        content = idx(random.integers(0, high, shape).astype(np.uint8))
        packed = gzip.compress(content, 1, mtime=0)
        made[file.name] = content
        digests = [hashlib.md5(data).hexdigest() for data in (content, packed)]
        monkeypatch.setattr(
            mnist, constant, mnist.IdxFile(file.name, shape, md5=digests[0], md5_gz=digests[1])
        )
    return made


@pytest.fixture
def folder(contents: dict[str, bytes], tmp_path: Path) -> Path:
    for name, content in contents.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, 1, mtime=0))
    return tmp_path


def test_splits_are_fixed_by_index(folder: Path, contents: dict[str, bytes]) -> None:
    dataset = load_dataset("mnist", folder)
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [300, 5000, 200]
    images = np.frombuffer(contents["train-images-idx3-ubyte"], np.uint8, offset=16)
    labels = np.frombuffer(contents["train-labels-idx1-ubyte"], np.uint8, offset=8)
    ours = torch.cat([dataset.train.images, dataset.val.images])
    assert ours.shape == (NUM_TRAIN, 1, 28, 28)
    assert ours.dtype == torch.uint8
    assert (ours.flatten().numpy() == images).all()
    assert dataset.val.labels.dtype == torch.int64
    assert (dataset.val.labels.numpy() == labels[-5000:]).all()


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("rename", [str, lambda name: name.replace("-idx", ".idx")])
def test_uncompressed_files_in_the_usual_places(
    place: str, rename: Callable[[str], str], contents: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (tmp_path / place / rename(name)).write_bytes(content)
    assert len(load_dataset("mnist", tmp_path).test) == NUM_TEST


def test_the_variable_names_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_TRANSFORMER_DATA", str(folder))
    assert len(load_dataset("mnist").test) == NUM_TEST
    with pytest.raises(ValueError, match="elsewhere does not exist"):
        load_dataset("mnist", folder / "elsewhere")


def damage_end(content: bytes) -> bytes:
    return content[:-1000]


def damage_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize(
    "damage", [damage_end, damage_middle, lambda content: b"", lambda content: b"<html>no</html>"]
)
def test_a_damaged_file_is_named_and_where_to_get_it(
    damage: Callable[[bytes], bytes], packed: bool, folder: Path, contents: dict[str, bytes]
) -> None:
    name = "train-images-idx3-ubyte"
    path = folder / f"{name}.gz"
    content = path.read_bytes()
    if not packed:
        path.unlink()
        path, content = folder / name, contents[name]
    path.write_bytes(damage(content))
    with pytest.raises(ValueError, match=path.name) as caught:
        load_dataset("mnist", folder)
    assert "https://" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ("train-labels-idx1-ubyte", "expected an IDX file of 5300 x 28 x 28 bytes"),
        ("t10k-images-idx3-ubyte", "holds 200 x 28 x 28 bytes, expected"),
    ],
)
def test_a_wrong_file_is_told_from_the_right_one(theirs: str, message: str, folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes((folder / f"{theirs}.gz").read_bytes())
    with pytest.raises(ValueError, match=message):
        load_dataset("mnist", folder)


def test_another_dataset_of_the_same_shape_is_refused(
    folder: Path, contents: dict[str, bytes]
) -> None:
    content = contents["t10k-labels-idx1-ubyte"]
    other = content[:8] + content[8:][::-1]
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(other))
    with pytest.raises(ValueError, match="is not MNIST's file"):
        load_dataset("mnist", folder)


@pytest.mark.parametrize("constant", FILES)
def test_a_missing_file_is_one_sentence(constant: str, folder: Path) -> None:
    name = getattr(mnist, constant).name
    (folder / f"{name}.gz").unlink()
    with pytest.raises(ValueError, match=f"holds no {name}") as caught:
        load_dataset("mnist", folder)
    assert "https://" in str(caught.value)


# --- mirrors ---


class Mirrors(ThreadingHTTPServer):
    """http://127.0.0.1:port/<mirror>/<file>: each mirror answers by its own function."""

    answers: dict[str, Callable[[str], bytes | None]]
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Mirrors

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        _, mirror, name = self.path.split("/")
        body = self.server.answers[mirror](name)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirrors(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mirrors]:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("pooch.os_cache", lambda project: cache / project)
    with Mirrors(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.answers = {
            "good": lambda name: (folder / name).read_bytes(),
            "gone": lambda name: None,
            "damaged": lambda name: damage_middle((folder / name).read_bytes()),
        }
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def urls(server: Mirrors, *names: str) -> tuple[str, ...]:
    return tuple(f"http://127.0.0.1:{server.server_port}/{name}/" for name in names)


@pytest.mark.parametrize("first", ["gone", "damaged", "unreachable"])
def test_the_next_mirror_helps_and_the_cache_keeps(
    first: str,
    mirrors: Mirrors,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = ("http://127.0.0.1:1/",) if first == "unreachable" else urls(mirrors, first)
    monkeypatch.setattr(mnist, "MIRRORS", start + urls(mirrors, "good"))
    assert len(mnist.read()[1]) == NUM_TEST
    assert "100%" in capsys.readouterr().err  # the progress bar
    mirrors.asked.clear()
    assert len(mnist.read()[1]) == NUM_TEST
    assert mirrors.asked == []


def test_no_mirror_is_one_sentence_and_leaves_nothing(mirrors: Mirrors) -> None:
    cache = pooch.os_cache("mnist-transformer")
    with pytest.raises(OSError, match="--data") as caught:
        fetch("t10k-labels-idx1-ubyte.gz", "0" * 32, urls(mirrors, "gone", "good"))
    assert "HTTP 404" in str(caught.value)
    assert "damaged or different" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_damaged_cache_is_downloaded_anew(mirrors: Mirrors) -> None:
    file = mnist.TEST_LABELS
    name = f"{file.name}.gz"
    path = fetch(name, file.md5_gz, urls(mirrors, "good"))
    good = path.read_bytes()
    path.write_bytes(good[:100])
    assert fetch(name, file.md5_gz, urls(mirrors, "good")).read_bytes() == good


# --- the real thing ---


def test_all_of_mnist(mnist_folder: Path) -> None:
    dataset = load_dataset("mnist", mnist_folder)
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [55000, 5000, 10000]
    assert dataset.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert dataset.test.labels.bincount().tolist()[:3] == [980, 1135, 1032]


def test_an_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest: mnist"):
        load_dataset("minst")
