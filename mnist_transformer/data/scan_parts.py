"""The recovery of all of MNIST's scans, on all cores, in parts that survive a kill.

A part is about 500 images in a file of ``utils.trees``. ``part-NNN.safetensors`` has the ``sides``
of their scans, uint8, 0 where none is found, and the ``ink``: ``np.packbits`` of each scan (m, m),
one after the other. ``chosen-NNN.safetensors`` has the likelier ``ink`` that was chosen for the ink
``before``.
"""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_transformer.data import scan_choice
from mnist_transformer.data.scan_file import Scans, groups, packed
from mnist_transformer.data.scan_search import to_scan
from mnist_transformer.utils import trees
from mnist_transformer.utils.processes import in_processes

PART = 500  # images
Bytes = NDArray[np.uint8]
Report = Callable[[str, int, int | None], None]
"""Called with a stage, the number of images done, and their total."""


def recover(images: Tensor, folder: Path, report: Report) -> tuple[Tensor, Bytes]:
    """The sides (N,) and ink of images uint8 (N, 1, 28, 28), as ``scan_file.Scans`` has them.

    Parts that are in the folder are used, the others are written to it.

    Raises:
        ValueError: a part is damaged, or OR-Tools is missing.
    """
    tasks = _tasks(folder, "part", [batch.numpy() for batch in images[:, 0].split(PART)])
    known = {path: _read(path, len(batch)) for path, batch in tasks if path.exists()}
    if left := [task for task in tasks if task[0] not in known]:
        if importlib.util.find_spec("ortools") is None:
            raise ValueError("no OR-Tools to find scans: pip install 'mnist-transformer[scans]'")
        found = _in_parts(_search, left, "recovering scans", len(images), report)
        known |= zip([path for path, _ in left], found, strict=True)
    sides, inks = zip(*(known[path] for path, _ in tasks), strict=True)
    return torch.from_numpy(np.concatenate(sides)).long(), np.concatenate(inks)


def choose(scans: Scans, num_counted: int, folder: Path, report: Report) -> Bytes:
    """Ink of likelier scans that give the same images, as ``Scans`` has it; see scan_choice.py.

    Contexts are counted in the first ``num_counted`` images. Parts that are in the folder
    are used, the others are written to it.
    """
    counted = groups(scans.sides[:num_counted])
    nats = scan_choice.count(scans.canvas(index, side).numpy() for side, index in counted)
    parts = torch.arange(len(scans)).split(PART)
    tasks = _tasks(folder, "chosen", [list(map(scans.square, x.tolist())) for x in parts])
    work = partial(_choose, nats)
    return np.concatenate(_in_parts(work, tasks, "choosing scans", len(scans), report))


def _tasks(folder: Path, name: str, parts: Sequence[Any]) -> list[tuple[Path, Any]]:
    return [(folder / f"{name}-{i:03}.safetensors", part) for i, part in enumerate(parts)]


def _in_parts(
    work: Callable[[tuple[Path, Any]], Any],
    tasks: Sequence[tuple[Path, Any]],
    stage: str,
    num_images: int,
    report: Report,
) -> list[Any]:
    """``work`` of all tasks, each a path and an entry per image."""
    found, done = [], num_images - sum(len(images) for _, images in tasks)
    report(stage, done, num_images)
    for part, (_, images) in zip(in_processes(work, tasks), tasks, strict=True):
        found.append(part)
        done += len(images)
        report(stage, done, num_images)
    return found


def _search(task: tuple[Path, Bytes]) -> tuple[Bytes, Bytes]:
    """Find the sides and ink of a part, and write the part."""
    torch.set_num_threads(1)  # there is a process per core
    path, images = task
    scans = [np.zeros((0, 0), bool) if x is None else x for x in map(to_scan, images)]
    sides, ink = np.array(list(map(len, scans)), np.uint8), packed(scans)
    trees.save_state(path, {"sides": torch.from_numpy(sides), "ink": torch.from_numpy(ink)})
    return sides, ink


def _read(path: Path, num_images: int) -> tuple[Bytes, Bytes]:
    """The sides and ink of so many images; ValueError if the part is damaged or another one."""
    with suppress(ValueError, LookupError):
        part = trees.load_state(path)
        if len(part["sides"]) == num_images:
            return part["sides"].numpy(), part["ink"].numpy()
    hint = "delete it to have it searched again"
    raise ValueError(f"{path} is damaged, or a part of other images; {hint}")


def _choose(nats: NDArray[np.float64], task: tuple[Path, list[Bytes]]) -> Bytes:
    """The chosen ink of a part: read if it was written before, else chosen and written."""
    torch.set_num_threads(1)
    path, scans = task
    before = packed(scans)
    with suppress(ValueError, LookupError):
        known = trees.load_state(path)
        if np.array_equal(known["before"], before):
            return np.asarray(known["ink"])
    ink = packed(scan_choice.likelier(scan, nats) if len(scan) else scan for scan in scans)
    trees.save_state(path, {"before": torch.from_numpy(before), "ink": torch.from_numpy(ink)})
    return ink
