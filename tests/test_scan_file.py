"""MNIST as scans: their code (data/scan_coder.py) and the file (data/scan_file.py)."""

import functools
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_transformer.data import mnist, scan_coder, scan_file, scans

SHA256 = {
    mnist.TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    mnist.TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    mnist.TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    mnist.TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def blot(side: int, seed: int) -> np.ndarray:
    """A scan (side, side): an ellipse of ink somewhere, which touches no edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    a, b = rng.uniform(0.15, 0.4, 2)
    return ((y / a) ** 2 + ((x + y * rng.uniform(-1, 1)) / b) ** 2 < 1).astype(np.uint8)


@functools.cache
def small(leftovers: bool = True) -> tuple[scan_file.Scans, torch.Tensor]:
    """Twelve scans of three sides, with two images between that have none; and all images."""
    sides = [41, 41, 22, 41, 60, 41, 22, 41, 41, 41, 41, 41]
    if leftovers:
        sides[3:3] = sides[8:8] = [0]
    inks = [blot(side, seed) for seed, side in enumerate(sides) if side]
    packed = np.concatenate([np.packbits(ink) for ink in inks])
    images = torch.randint(256, (len(sides), 1, 28, 28), dtype=torch.uint8)
    tensor = torch.tensor(sides)
    made = scan_file.Scans(tensor, torch.arange(len(sides)) % 10, images[tensor == 0], packed)
    return made, made.images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, which is an empty folder here."""
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache")
    return tmp_path / "cache"


def same(a: scan_file.Scans, b: scan_file.Scans) -> bool:
    tensors = ((a.sides, b.sides), (a.labels, b.labels), (a.leftovers, b.leftovers))
    return all(torch.equal(x, y) for x, y in tensors) and (a.ink == b.ink).all()


# --- the coder ---


def test_pictures_come_back_from_their_code():
    rng = np.random.default_rng(0)
    noise = (rng.random((2, 9, 5)) < 0.5).astype(np.uint8)
    groups = [noise, np.stack([blot(30, seed) for seed in range(40)]), noise[:1, :3, :1]]
    code = scan_coder.encode(groups)
    decoded = scan_coder.decode(code, [group.shape for group in groups])
    for got, group in zip(decoded, groups, strict=True):
        assert (got == group).all()
    assert list(scan_coder.decode(scan_coder.encode([]), [])) == []


def test_the_code_learns():
    """Pictures like the ones before cost a fraction of their pixels."""
    groups = [np.stack([blot(40, seed) for seed in range(n, 2 * n)]) for n in (1, 4, 16, 64)]
    sizes = [len(scan_coder.encode(groups[:n])) for n in (3, 4)]
    assert (sizes[1] - sizes[0]) / 64 < 25  # bytes; 40 x 40 bits are 200
    assert scan_coder.encode(groups) == scan_coder.encode(groups)


def test_the_code_does_not_change():
    """The packaged file must be decoded alike by every machine and every version."""
    code = scan_coder.encode([np.stack([blot(25, seed) for seed in range(5)])])
    assert hashlib.sha256(code).hexdigest()[:16] == "2e52a6eeeb9f0509"


# --- the file ---


@pytest.mark.parametrize("leftovers", [True, False])
def test_scans_come_back_from_a_file_and_from_the_cache(
    leftovers: bool, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, images = small(leftovers)
    path = tmp_path / "small.scans"
    path.write_bytes(scan_file.pack(made))
    assert same(scan_file.read(path), made)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])  # a damaged cache is decoded into again
    assert same(scan_file.read(path), made)
    monkeypatch.setattr(scan_coder, "decode", None)
    again = scan_file.read(path)
    assert same(again, made)
    assert torch.equal(again.images, images)


def test_the_cache_can_do_without_a_place(cache: Path, tmp_path: Path):
    cache.write_text("not a folder")
    path = tmp_path / "small.scans"
    path.write_bytes(scan_file.pack(small()[0]))
    assert same(scan_file.read(path), small()[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "truncated or altered"),
        (lambda content: content[:20], "truncated or altered"),
        (lambda content: content[:48] + b"\1" + content[49:], "truncated or altered"),
        (lambda content: content[:99] + bytes([content[99] ^ 1]) + content[100:], "altered"),
        (lambda content: b"", "begins with b''"),
        (lambda content: content.replace(b" 1\n", b" 2\n", 1), "begins with b'MNIST scans 2"),
    ],
)
def test_a_damaged_file_is_one_sentence(damage, message: str, tmp_path: Path):
    path = tmp_path / "small.scans"
    path.write_bytes(damage(scan_file.pack(small()[0])))
    with pytest.raises(ValueError, match=message) as caught:
        scan_file.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_damaged_length_which_no_digest_covers_does_no_harm(tmp_path: Path):
    content = bytearray(scan_file.pack(small()[0]))
    content[50] ^= 1
    path = tmp_path / "small.scans"
    path.write_bytes(content)
    assert same(scan_file.read(path), small()[0])


def test_a_scan_that_gives_another_image_is_left_out():
    made, images = small()
    other = images.clone()
    other[5, 0, 0, 0] = 7
    right = scan_file.reproducing(other, made.labels, made.sides, made.ink)
    assert right.sides.tolist() == [*made.sides[:5].tolist(), 0, *made.sides[6:].tolist()]
    assert torch.equal(right.images, other)
    assert same(scan_file.reproducing(images, made.labels, made.sides, made.ink), made)


def test_canvases_have_the_square_at_their_centre():
    made, images = small()
    index = torch.tensor([6, 2, 5, 0])
    canvas = made.canvas(index, 71)
    assert torch.equal(scans.to_images(canvas, made.sides[index]), images[index])
    assert canvas.sum((1, 2)).tolist() == [
        int(made.canvas(i[None], int(made.sides[i])).sum()) for i in index
    ]
    assert not made.canvas(torch.tensor([3]), 71).any()  # it has no scan
    with pytest.raises(ValueError, match="size is 50, expected the side of scan 5, 60"):
        made.canvas(index, 50)


def test_find_knows_its_images_and_no_others():
    made, images = small()
    strange = images.clone()
    strange[4, 0, 14, 14] ^= 1
    expected = torch.where(made.sides > 0, torch.arange(len(made)), -1)
    assert torch.equal(made.find(images), expected)
    assert made.find(strange[[4, 0, 9]]).tolist() == [-1, 0, 9]
    assert made.find(images[:0]).dtype == torch.int64


# --- all of MNIST ---


def test_mnist_is_read_from_the_package(monkeypatch: pytest.MonkeyPatch):
    made, images = small()
    monkeypatch.delenv("MNIST_TRANSFORMER_DATA", raising=False)
    monkeypatch.setattr(scan_file, "PACKAGED", Path(__file__))
    monkeypatch.setattr(scan_file, "load_scans", lambda: made)
    monkeypatch.setattr(mnist, "TEST_IMAGES", mnist.TEST_IMAGES._replace(shape=(5, 28, 28)))
    monkeypatch.setattr(mnist, "NUM_VAL", 2)
    dataset = mnist.load()
    splits = dataset.train, dataset.val, dataset.test
    assert [len(split) for split in splits] == [7, 2, 5]
    assert torch.equal(torch.cat([split.images for split in splits]), images)
    assert torch.equal(torch.cat([split.labels for split in splits]), made.labels)


def test_the_package_holds_the_official_files():
    """Their IDX bytes, rebuilt."""
    made = scan_file.load_scans()
    images, labels = (x.byte().numpy() for x in (made.images, made.labels))
    num_train = mnist.TRAIN_LABELS.shape[0]
    contents = (images[:num_train], labels[:num_train], images[num_train:], labels[num_train:])
    for (file, sha256), content in zip(SHA256.items(), contents, strict=True):
        head = struct.pack(f">BBBB{len(file.shape)}I", 0, 0, 8, len(file.shape), *file.shape)
        assert hashlib.sha256(head + content.tobytes()).hexdigest() == sha256, file.name
