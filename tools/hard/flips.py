"""One bit flipped at random in every part of a file: is it noticed?"""

import gzip
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_transformer.data import idx, scan_file
from mnist_transformer.models import checkpoint
from mnist_transformer.recipes import Recipe
from mnist_transformer.training import loop
from mnist_transformer.training import state as resume
from mnist_transformer.utils import trees
from tools.hard import Figures, Lines
from tools.hard.kills import RECIPE, make_data

SLOW = 20  # a file that takes long to read gets so many times fewer flips


@dataclass(frozen=True)
class Kind:
    """A kind of file: a name, the file, how it is read, and where its parts end."""

    name: str
    path: Path
    read: Callable[[Path], Any]
    parts: dict[str, int]
    times_fewer: int = 1


def safetensors_parts(content: bytes) -> dict[str, int]:
    (size,) = struct.unpack("<Q", content[:8])
    return {"length of the header": 8, "header": 8 + size, "tensors": len(content)}


def make_files(folder: Path) -> Iterator[Kind]:
    """A state and a checkpoint of a short run, IDX files, and MNIST's scans."""
    run = folder / "run"
    recipe: Recipe = RECIPE
    path = loop.train(recipe, run, data=make_data(), device="cpu", epochs=0.5)
    state = resume.find_states(run)[0]
    yield Kind("state", state, trees.load_state, safetensors_parts(state.read_bytes()))
    yield Kind("checkpoint", path, _model, safetensors_parts(path.read_bytes()))
    values = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
    plain = folder / "images-idx3-ubyte"
    plain.write_bytes(idx.header(values.shape) + values.tobytes())
    parts = {"magic": 4, "axes": 16, "values": 16 + values.size}
    yield Kind("IDX", plain, idx.read, parts)
    packed = folder / "images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    size = packed.stat().st_size
    parts = {"gzip's header": 10, "compressed": size - 8, "checksum and length": size}
    yield Kind("IDX, gzipped", packed, idx.read, parts)
    scans = folder / "mnist.scans"
    scans.write_bytes(scan_file.PACKAGED.read_bytes())
    magic, digest, size = len(scan_file.MAGIC), scan_file.HEAD, scans.stat().st_size
    parts = {"magic": magic, "digest and sizes": digest, "compressed": size}
    yield Kind("scans", scans, _scans, parts, SLOW)


def _model(path: Path) -> Any:
    model = checkpoint.load(path)
    return model.state_dict(), repr(model.config)


def _scans(path: Path) -> Any:
    found = scan_file.read(path)
    return found.sides, found.labels, found.ink


def same(a: Any, b: Any) -> bool:
    """Whether two trees of tensors, arrays and JSON values are the same, bit for bit."""
    if type(a) is not type(b):  # a flip may give a tensor the name of a text
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(x, b[name]) for name, x in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)


def outcome(kind: Kind, whole: Any) -> str:
    """The outcome of reading a damaged file."""
    try:
        found = kind.read(kind.path)
    except ValueError as error:
        sentence = kind.path.name in str(error) and "\n" not in str(error)
        return "refused" if sentence else "no sentence"
    except Exception:  # noqa: BLE001 - any exception is counted
        return "no sentence"
    return "harmless" if same(whole, found) else "unnoticed"


def flips(number: int, folder: Path, seed: int = 0) -> Lines:
    """Flip so many bits in each part of each kind of file, one at a time."""
    rng = random.Random(seed)
    for kind in make_files(folder):
        content, whole, start = kind.path.read_bytes(), kind.read(kind.path), 0
        for part, end in kind.parts.items():
            found = Counter[str]()
            tries = max(1, number // kind.times_fewer)
            for _ in range(tries):
                bit = rng.randrange(8 * start, 8 * end)
                damaged = bytearray(content)
                damaged[bit // 8] ^= 1 << bit % 8
                kind.path.write_bytes(damaged)
                found[outcome(kind, whole)] += 1
            start = end
            kind.path.write_bytes(content)
            names = ("refused", "harmless", "unnoticed", "no sentence")
            counts: Figures = {"bits flipped": tries}
            counts |= {name: found[name] for name in names}
            yield {"file": kind.name, "part": part}, counts
