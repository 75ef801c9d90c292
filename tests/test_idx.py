"""IDX files of any kind, a user's folder of them, and MNIST's kin from a folder and mirrors."""

import gzip
import hashlib
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PRINT_PEAK, needs_proc, serve

from mnist_transformer.data import idx, load_dataset, mnist_kin, parquet


def to_idx(values: np.ndarray) -> bytes:
    return idx.header(values.shape) + values.tobytes()


def random(*shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, high, shape).astype(np.uint8)


@pytest.mark.parametrize("pack", [bytes, lambda content: gzip.compress(content, 1)])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (5, 4, 6), (5, 4, 6, 3), (0, 2)])
def test_any_shape_is_read(pack, shape, tmp_path: Path) -> None:
    values = random(*shape)
    (tmp_path / "any name").write_bytes(pack(to_idx(values)))
    found = idx.read(tmp_path / "any name")
    assert found.dtype == np.uint8
    assert np.array_equal(found, values)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with ''"),
        (b"\0\0\x0d\1" + b"\0" * 8, "begins with '00 00 0d 01', expected an IDX file"),
        (b"\0\0\x08\3" + b"\0" * 8, "it ends in its header"),
        (to_idx(random(9))[:-1], "has 16 bytes, expected 17: it is truncated"),
        (to_idx(random(9)) + b"\0" * 9, "has 18 bytes or more, expected 17"),
        (b"\0\0\x08\4" + b"\xff" * 16, "declares .* bytes, expected 700,000,000 or fewer"),
    ],
)
def test_a_file_that_is_not_well_formed_is_one_sentence(pack, content, message, tmp_path) -> None:
    (tmp_path / "x").write_bytes(pack(content))
    with pytest.raises(ValueError, match=message) as caught:
        idx.read(tmp_path / "x")
    assert str(caught.value).startswith(str(tmp_path))


@needs_proc
def test_a_bomb_of_zeros_takes_no_memory(tmp_path: Path) -> None:
    """3 GB of zeros behind a header of ten bytes, and behind one that promises 2 GB."""
    zeros = gzip.compress(bytes(2**20), 9)
    for count in (10, 2**31):
        head = gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, count))
        (tmp_path / "bomb.gz").write_bytes(head + zeros * 3000)
        code = (
            "import sys; from pathlib import Path; "
            "from mnist_transformer.data import idx\n"
            "try: idx.read(Path(sys.argv[1]))\n"
            "except ValueError as error: print(error)\n"
            f"{PRINT_PEAK}"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "bomb.gz")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        message, peak = done.stdout.splitlines()
        assert "expected 18" in message or "expected 700,000,000" in message
        assert int(peak) < 1e6


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "pixels").write_bytes(to_idx(random(50, 8, 6)))
    (folder / "classes.gz").write_bytes(gzip.compress(to_idx(np.arange(50, dtype=np.uint8) % 5)))
    (folder / "classes").write_bytes(to_idx(np.arange(50, dtype=np.uint8) % 5))
    (folder / ".hidden").write_bytes(b"?")
    return folder


def test_a_folder_of_ones_own(own: Path) -> None:
    dataset = load_dataset("idx", own)
    assert dataset.spec.name == "idx:mine"
    assert dataset.spec.shape == (1, 8, 6)
    assert dataset.spec.class_names == ("0", "1", "2", "3", "4")
    assert dataset.spec.background is None
    assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [40, 5, 5]
    joined = torch.cat([dataset.train.images, dataset.val.images, dataset.test.images])
    assert np.array_equal(joined[:, 0].numpy(), random(50, 8, 6))
    (own / "pixels").write_bytes(to_idx(random(50, 8, 6) * (random(50, 8, 6) > 200)))
    assert load_dataset("idx", own).spec.background == 0


@pytest.mark.parametrize("shape", [(4, 6, 3), (3, 4, 6)])
def test_colour_and_a_test_set_of_its_own(shape, own: Path) -> None:
    (own / "pixels").write_bytes(to_idx(random(50, *shape)))
    (own / "T10K-pixels").write_bytes(to_idx(random(20, *shape)))
    (own / "test-classes").write_bytes(to_idx(np.full(20, 7, np.uint8)))
    dataset = load_dataset("idx", own)
    assert dataset.spec.shape == (3, 4, 6)
    assert dataset.spec.num_classes == 8
    assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [45, 5, 20]
    expected = random(20, *shape)
    expected = expected.transpose(0, 3, 1, 2) if shape[2] == 3 else expected
    assert np.array_equal(dataset.test.images.numpy(), expected)


def test_parquet_files_are_read_too(own: Path) -> None:
    pytest.importorskip("pyarrow")
    for path in own.iterdir():
        path.unlink()
    images, labels = torch.tensor(random(30, 3, 8, 6)), torch.tensor(random(30, high=5))
    parquet.write(own / "images.parquet", images, labels)
    parquet.write(own / "test.parquet", images[:4], labels[:4])
    dataset = load_dataset("idx", own)
    assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [27, 3, 4]
    assert torch.equal(torch.cat([dataset.train.images, dataset.val.images]), images)
    assert torch.equal(dataset.test.labels, labels[:4].long())
    parquet.write(own / "test.parquet", images[:4], torch.full((4,), 300))
    with pytest.raises(ValueError, match=r"test\.parquet has the label 300, expected 0 to 255"):
        load_dataset("idx", own)
    parquet.write(own / "test.parquet", images[:0], labels[:0])
    with pytest.raises(ValueError, match=r"test\.parquet holds no picture, expected one or more"):
        load_dataset("idx", own)


def test_files_that_do_not_fit_are_one_sentence(own: Path) -> None:
    def refuse(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_dataset("idx", own)

    (own / "test-images").write_bytes(to_idx(random(9, 8, 6)))
    refuse("IDX files of 9 x 8 x 6 test bytes, expected N x H x W")
    (own / "test-labels").write_bytes(to_idx(random(8)))
    refuse("of 9 x 8 x 6 and 8 test bytes")
    (own / "test-labels").write_bytes(to_idx(random(9, high=5)))
    (own / "test-images").write_bytes(to_idx(random(9, 6, 8)))
    refuse("images of 1 x 8 x 6 and of 1 x 6 x 8 bytes")
    (own / "README").write_bytes(b"Mine.")
    refuse("README begins with '4d 69 6e 65', expected an IDX file")
    for path in own.iterdir():
        path.unlink()
    refuse("IDX files of no training bytes")
    (own / "x").write_bytes(to_idx(random(9, 8, 6)))
    (own / "y").write_bytes(to_idx(random(9)))
    refuse("holds 9 training images, expected 10 or more")
    with pytest.raises(ValueError, match="idx reads a folder of yours, got None"):
        load_dataset("idx")
    with pytest.raises(ValueError, match="idx takes no size"):
        load_dataset("idx", own, size=8)


# --- MNIST's kin, small ---


@pytest.fixture
def kin(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A data set of few images in a folder, with the hashes that its files have."""
    constant, real = request.param, getattr(mnist_kin, request.param)
    counts, contents = (5300, 200), {}
    parts = mnist_kin.EMNIST_PARTS if constant == "EMNIST_DIGITS" else mnist_kin.MNIST_PARTS
    parts = tuple((part, count) for (part, _), count in zip(parts, counts, strict=True))
    for part, count in parts:
        for kind, values in (
            ("images-idx3", random(count, 28, 28, high=4)),
            ("labels-idx1", random(count, high=10)),
        ):
            contents[f"{part}-{kind}-ubyte.gz"] = gzip.compress(to_idx(values), 1, mtime=0)
    if constant == "EMNIST_DIGITS":
        monkeypatch.setattr(mnist_kin, "EMNIST_PARTS", parts)
        with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        monkeypatch.setattr(mnist_kin, "MNIST_PARTS", parts)
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
    hashes = {x: hashlib.md5((tmp_path / x).read_bytes()).hexdigest() for x in real.hashes}
    monkeypatch.setattr(mnist_kin, constant, replace(real, hashes=hashes))
    return constant, tmp_path


ALL = pytest.mark.parametrize("kin", ["FASHION", "KMNIST", "EMNIST_DIGITS"], indirect=True)


@ALL
def test_kin_come_from_a_folder_or_a_mirror(kin, tmp_path_factory, monkeypatch) -> None:
    constant, folder = kin
    found = getattr(mnist_kin, constant)
    dataset = load_dataset(found.spec.name, folder)
    assert dataset.spec is found.spec
    assert [len(x) for x in (dataset.train, dataset.val, dataset.test)] == [300, 5000, 200]
    first = torch.tensor(random(5300, 28, 28, high=4)[0])
    expected = first.T if constant == "EMNIST_DIGITS" else first
    assert torch.equal(dataset.train.images[0, 0], expected)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("pooch.os_cache", lambda project: cache / project)
    with serve(folder) as url:
        mirrors = (f"{url}/gone/", f"{url}/")
        monkeypatch.setattr(mnist_kin, constant, replace(found, mirrors=mirrors))
        fetched = load_dataset(found.spec.name)
    assert torch.equal(fetched.train.images, dataset.train.images)
    names = [path.name for path in (cache / "mnist-transformer" / found.spec.name).iterdir()]
    assert sorted(names) == sorted(found.hashes)
    assert torch.equal(load_dataset(found.spec.name).test.labels, dataset.test.labels)


@ALL
def test_another_file_is_refused_with_where_to_get_it(kin) -> None:
    constant, folder = kin
    spec = getattr(mnist_kin, constant).spec
    name = next(iter(getattr(mnist_kin, constant).hashes))
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"is not {spec.name}'s: its md5 is .*; get it from http"):
        load_dataset(spec.name, folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"holds no {name}; get it from http"):
        load_dataset(spec.name, folder)


def test_the_official_hashes_are_whole() -> None:
    kin = mnist_kin.FASHION, mnist_kin.KMNIST, mnist_kin.EMNIST_DIGITS
    hashes = [md5 for one in kin for md5 in one.hashes.values()]
    assert len(set(hashes)) == 9
    assert all(len(md5) == 32 and int(md5, 16) for md5 in hashes)
    assert all(one.spec.num_classes == 10 for one in kin)
