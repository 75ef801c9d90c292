"""The recovery of all of MNIST's scans, on all cores, in parts that outlive a kill.

``part-NNN.npz`` is about 500 images: ``sides`` uint8, 0 where no scan is known, and ``ink``,
``np.packbits`` of each scan (m, m), one after the other. ``thorough`` is there once every
candidate side of every image was tried; without it, the images without a scan are tried again.
``chosen-NNN.npz`` has the likelier ``ink`` that was chosen for the ink ``before``.
"""

import importlib.util
import io
import multiprocessing
import signal
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_transformer.data import scan_choice
from mnist_transformer.data.scan_file import Scans
from mnist_transformer.data.scan_search import to_scan
from mnist_transformer.utils.files import write_atomic

PART = 500  # images
# numpy's errors for what is not an archive, another archive or a broken one
_DAMAGE = BadZipFile, zlib.error, EOFError, KeyError, ValueError, AttributeError, TypeError
_NATS: list[NDArray[np.float64]] = []  # of contexts, in a process that chooses


class Part(NamedTuple):
    """Recovered scans of some images."""

    sides: NDArray[np.uint8]
    ink: NDArray[np.uint8]
    thorough: bool


def recover(
    images: Tensor, folder: Path, report: Callable[[str, int, int | None], None]
) -> tuple[Tensor, NDArray[np.uint8]]:
    """The sides (N,) and ink of images uint8 (N, 1, 28, 28), as ``scan_file.Scans`` has them.

    Parts that the folder holds are used, and it is given the others. ``report`` is told how
    many of the images are done.

    Raises:
        ValueError: a part is damaged, or OR-Tools is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = [batch.numpy() for batch in images[:, 0].split(PART)]
    paths = [folder / f"part-{number:03}.npz" for number in range(len(batches))]
    tasks = [
        (path, batch)
        for path, batch in zip(paths, batches, strict=True)
        if not (path.exists() and _read(path, len(batch)).thorough)
    ]
    left = sum(len(batch) for _, batch in tasks)
    if tasks:
        if importlib.util.find_spec("ortools") is None:
            raise ValueError("no OR-Tools to find scans: pip install 'mnist-transformer[scans]'")
        # Leaving the pool ends its processes, after Ctrl-C too.
        with multiprocessing.get_context("spawn").Pool(initializer=_start) as pool:
            report("recovering scans", len(images) - left, len(images))
            for done in pool.imap_unordered(_search, tasks):
                left -= done
                report("recovering scans", len(images) - left, len(images))
    parts = [_read(path, len(batch)) for path, batch in zip(paths, batches, strict=True)]
    sides, inks, _ = zip(*parts, strict=True)
    return torch.from_numpy(np.concatenate(sides)).long(), np.concatenate(inks)


def choose(
    scans: Scans, num_counted: int, folder: Path, report: Callable[[str, int, int | None], None]
) -> NDArray[np.uint8]:
    """Ink of likelier scans that give the same images, as ``Scans`` has it; see scan_choice.py.

    Contexts are counted in the first ``num_counted`` images. Parts that the folder holds are
    used, and it is given the others. ``report`` is told how many of the images are done.
    """
    nats = scan_choice.count(scan for i in range(num_counted) if len(scan := scans.square(i)))
    tasks = []
    for number, images in enumerate(torch.arange(len(scans)).split(PART)):
        first, last = int(images[0]), int(images[-1])
        ink = np.concatenate([scans.bits(image) for image in range(first, last + 1)])
        sides = scans.sides[images].numpy().astype(np.uint8)
        tasks.append((folder / f"chosen-{number:03}.npz", sides, ink))
    chosen, done = [], 0
    with multiprocessing.get_context("spawn").Pool(initializer=_start, initargs=(nats,)) as pool:
        for sides_and_ink, task in zip(pool.imap(_choose, tasks), tasks, strict=True):
            chosen.append(sides_and_ink)
            done += len(task[1])
            report("choosing scans", done, len(scans))
    return np.concatenate(chosen)


def _start(nats: NDArray[np.float64] | None = None) -> None:
    """Set a process of the pool up: there is one for each core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if nats is not None:
        _NATS.append(nats)


def _search(task: tuple[Path, NDArray[np.uint8]]) -> int:
    """Write a part, with what is there of it already; return how many images it has."""
    path, images = task
    known = _read(path, len(images)) if path.exists() else None
    sides = np.zeros(len(images), np.uint8) if known is None else known.sides
    ink = np.zeros(0, np.uint8) if known is None else known.ink
    inks = np.split(ink, _sizes(sides).cumsum()[:-1])
    for number in np.flatnonzero(sides == 0):
        if scan := to_scan(images[number]):
            sides[number], inks[number] = scan.side, np.packbits(scan.ink)
    content = io.BytesIO()
    np.savez_compressed(content, sides=sides, ink=np.concatenate(inks), thorough=True)
    write_atomic(path, content.getvalue())
    return len(images)


def _choose(task: tuple[Path, NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The chosen ink of a part, which is written if it is not there."""
    path, sides, before = task
    if path.exists():
        with suppress(*_DAMAGE), np.load(path) as file:
            if np.array_equal(file["before"], before):
                return np.asarray(file["ink"])
    inks = [np.zeros(0, np.uint8)]
    parts = np.split(before, _sizes(sides).cumsum()[:-1])
    for side, bits in zip(sides.tolist(), parts, strict=True):
        if side:
            ink = np.unpackbits(bits, count=side * side).reshape(side, side)
            inks.append(np.packbits(scan_choice.likelier(ink, _NATS[0])))
    content = io.BytesIO()
    np.savez_compressed(content, before=before, ink=np.concatenate(inks))
    write_atomic(path, content.getvalue())
    return np.concatenate(inks)


def _read(path: Path, num_images: int) -> Part:
    """A part of so many images; ValueError if it is damaged or another one."""
    try:
        with np.load(path) as file:
            part = Part(file["sides"], file["ink"], "thorough" in file)
        if any(array.dtype != np.uint8 for array in part[:2]):
            raise ValueError("expected uint8")
        if (part.sides.shape, part.ink.shape) != ((num_images,), (_sizes(part.sides).sum(),)):
            raise ValueError("expected other shapes")
    except _DAMAGE as e:
        hint = "delete it to have it searched again"
        raise ValueError(f"{path} is damaged, or a part of other images; {hint}") from e
    return part


def _sizes(sides: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The bytes that each scan's bits take."""
    return (sides.astype(np.int64) ** 2 + 7) // 8
