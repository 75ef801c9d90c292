"""CIFAR-10 in its layouts, from a folder and a mirror, whole and damaged."""

import hashlib
import os
import sys
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import TINY, serve
from PIL import Image

from experiments.compress import jpeg_sizes
from mnist_transformer import cli, load, train
from mnist_transformer.data import cifar10, load_dataset
from mnist_transformer.evaluation import ledger, protocol
from mnist_transformer.models import loading
from mnist_transformer.recipes import RECIPES

SIZES = [2600, 5000, 1520]  # of which training and validation have 5 batches


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A small CIFAR-10: the bytes of each batch."""
    monkeypatch.setattr(cifar10, "PER_BATCH", 1520)
    random = np.random.default_rng(0)
    rows = {x: random.integers(0, 10, (1520, 3073), np.uint8) for x in cifar10.TRAIN + cifar10.TEST}
    return {name: values.tobytes() for name, values in rows.items()}


@pytest.fixture
def archive(batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "archive" / cifar10.ARCHIVE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        folder = tarfile.TarInfo(cifar10.UNPACKED)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in batches.items():
            entry = tarfile.TarInfo(f"{cifar10.UNPACKED}/{name}")
            entry.size = len(content)
            tar.addfile(entry, BytesIO(content))
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def check(dataset, batches) -> None:
    assert dataset.spec == cifar10.SPEC
    assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == SIZES
    last = np.frombuffer(batches["data_batch_5.bin"], np.uint8)[-3073:]
    assert dataset.val.labels[-1] == last[0]
    assert np.array_equal(dataset.val.images[-1].flatten().numpy(), last[1:])
    first = np.frombuffer(batches["test_batch.bin"], np.uint8)[:3073]
    assert np.array_equal(dataset.test.images[0].flatten().numpy(), first[1:])


def test_the_binary_version(batches, archive: Path, tmp_path: Path, monkeypatch) -> None:
    check(load_dataset("cifar10", archive.parent), batches)
    for place in (tmp_path / "a" / cifar10.UNPACKED, tmp_path / "b"):
        place.mkdir(parents=True)
        for name, content in batches.items():
            (place / name).write_bytes(content)
    check(load_dataset("cifar10", tmp_path / "a"), batches)
    check(load_dataset("cifar10", tmp_path / "b"), batches)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache")
    with serve(archive.parent) as url:
        monkeypatch.setattr(cifar10, "MIRRORS", (f"{url}/gone/", f"{url}/"))
        check(load_dataset("cifar10"), batches)


def test_damaged_batches_are_one_sentence(batches, archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"is not cifar10's: its md5 is .*; get it from https"):
        load_dataset("cifar10", archive.parent)
    for name, content in batches.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(batches[path.name][:-1])
    message = r"data_batch_3.bin in .* has \d+ bytes, expected \d+: it is truncated or missing; get"
    with pytest.raises(ValueError, match=message):
        load_dataset("cifar10", tmp_path)
    path.write_bytes(b"\x0c" + batches[path.name][1:])
    with pytest.raises(ValueError, match="has the label 12, expected 0 to 9"):
        load_dataset("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"data_batch_3.bin in .* has 0 bytes"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("name", cifar10.PICKLED)
def test_the_pickled_version_is_refused_with_the_file_to_take(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"pickled version.*; get cifar-10-binary.tar.gz from"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(ValueError, match=r"holds no cifar-10-binary.tar.gz, .*; get"):
        load_dataset("cifar10", tmp_path / "elsewhere")


# --- parquet ---


def encoded(kind: str, level: int, size: int = 32) -> dict[str, object]:
    content = BytesIO()
    Image.new("RGB", (size, size), (level % 256, 7, 9)).save(content, kind)
    return {"bytes": content.getvalue(), "path": None}


def write(path: Path, pictures: list, labels: list) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = sys.modules["pyarrow"]
    parquet.write_table(pyarrow.table({"img": pictures, "label": labels}), path)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "PER_BATCH", 10)
    monkeypatch.setattr(cifar10.hold_out, "__defaults__", (10,))


def fill(folder: Path, kind: str, labels: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    for part, first, last in (("train-0", 0, 20), ("train-1", 20, 50), ("test", 0, 10)):
        pictures = [encoded(kind, level) for level in range(first, last)]
        write(folder / f"{part}.parquet", pictures, (labels * 5)[first:last])


def test_png_in_parquet_is_cifar10(few, tmp_path: Path) -> None:
    fill(tmp_path, "PNG", [3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.spec == cifar10.SPEC
    assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [40, 10, 10]
    assert dataset.train.images[:, 0, 5, 5].tolist() == list(range(40))
    assert dataset.train.labels[:10].tolist() == [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def test_jpeg_in_parquet_is_another_data_set(few, tmp_path: Path) -> None:
    fill(tmp_path, "JPEG", [3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    assert load_dataset("cifar10", tmp_path).spec.name == "cifar10-jpeg"
    assert load_dataset("cifar10-jpeg", tmp_path).spec == cifar10.JPEG_SPEC
    with pytest.raises(ValueError, match="cifar10-jpeg reads a folder of yours, got None"):
        load_dataset("cifar10-jpeg")
    whole, bare = jpeg_sizes(tmp_path).values()
    assert whole == sum(len(encoded("JPEG", level)["bytes"]) for level in range(10))
    assert 0 < bare < whole - 10 * 500


def test_a_recipe_trained_on_the_copy_says_so(few, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for slow in ("sampling_speed", "throughput"):
        monkeypatch.setattr(protocol, slow, lambda *_, **__: 1.0)
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)  # no judge is shipped
    monkeypatch.setattr(ledger, "results_folder", lambda: tmp_path / "results")
    small = replace(TINY["ddpm"], data=cifar10.SPEC)
    tiny = replace(RECIPES["cifar10-ddpm"], model=small, batch_size=4, max_seconds=None, epochs=0.1)
    monkeypatch.setitem(RECIPES, "cifar10-ddpm", tiny)
    fill(tmp_path / "copy", "JPEG", [3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    weights = train("cifar10-ddpm", data="copy", device="cpu")
    assert load(weights, "cpu").config.data == cifar10.JPEG_SPEC
    assert cli.main(["eval", "runs/cifar10-ddpm", "--data", "copy", "--device", "cpu"]) == 0
    (row,) = ledger.rows(tmp_path / "results" / "ledger.jsonl")
    assert (row["recipe"], row["dataset"]) == ("cifar10-ddpm", "cifar10-jpeg")
    assert "drawn" not in row["metrics"]
    assert row["metrics"]["bits_per_dim"] > 0


def test_rows_sorted_by_class_are_dealt_out(few, tmp_path: Path) -> None:
    labels = [label for label in range(10) for _ in range(5)]
    write(tmp_path / "train.parquet", [encoded("PNG", i) for i in range(50)], labels)
    write(tmp_path / "test.parquet", [encoded("PNG", i) for i in range(10)], list(range(10)))
    dataset = load_dataset("cifar10", tmp_path)
    assert dataset.val.labels.tolist() == list(range(10))
    assert dataset.val.images[:, 0, 0, 0].tolist() == list(range(4, 50, 5))


def test_damaged_parquet_is_one_sentence(few, tmp_path: Path, monkeypatch) -> None:
    fill(tmp_path, "PNG", [3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    path = tmp_path / "train-1.parquet"

    def refuse(message: str, pictures: list, labels: list) -> None:
        write(path, pictures, labels)
        with pytest.raises(ValueError, match=message) as caught:
            load_dataset("cifar10", tmp_path)
        assert "\n" not in str(caught.value)

    good = [encoded("PNG", level) for level in range(30)]
    refuse("holds 49 train images, expected 50", good[1:], [1] * 29)
    refuse("has the label 10, expected 0 to 9", good, [10] * 30)
    refuse("has the label -1, expected 0 to 9", good, [-1] * 30)
    refuse("expected img with the bytes of", good, [None] * 30)
    refuse("expected img with the bytes of", ["x"] * 30, [1] * 30)
    refuse("a picture is 31x31", [encoded("PNG", 1, 31)] * 30, [1] * 30)
    cut = {"bytes": good[0]["bytes"][:60], "path": None}
    refuse("train-1.parquet is damaged", [cut] * 30, [1] * 30)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-1.parquet is damaged or another file"):
        load_dataset("cifar10", tmp_path)

    pyarrow = sys.modules["pyarrow"]
    unknown = mock.Mock(side_effect=pyarrow.ArrowNotImplementedError)
    monkeypatch.setattr("pyarrow.parquet.read_table", unknown)
    with pytest.raises(ValueError, match=r"another file \(ArrowNotImplementedError\)"):
        load_dataset("cifar10", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'mnist-transformer\[parquet\]'"):
        load_dataset("cifar10", tmp_path)


def test_the_real_copy() -> None:
    folder = os.environ.get("MNIST_TRANSFORMER_CIFAR10")
    if not folder:
        pytest.skip("needs all of CIFAR-10: MNIST_TRANSFORMER_CIFAR10 names no folder")
    dataset = load_dataset("cifar10", folder)
    assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [45000, 5000, 10000]
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert dataset.train.labels.bincount().min() > 4400
    assert (
        dataset.train.images.float().mean((0, 2, 3)).sub(torch.tensor([125, 123, 114])).abs().max()
        < 1
    )
