"""Any folder of pictures as a data set: one subfolder per class, or one class without subfolders.

Each picture is cropped to the square at its centre and scaled by area averaging (BOX, the best of
six methods for small images, arXiv 1707.08819). The SHA-256 of its path below the folder decides
its split, 80 / 10 / 10, so that a picture stays in its split when others are added. A split that
would be empty takes the next picture in the order of the hashes.
"""

import hashlib
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from mnist_transformer.data.dataset import Dataset, Split
from mnist_transformer.data.pictures import open_picture, square
from mnist_transformer.data.spec import MAX_DIMS, DataSpec
from mnist_transformer.utils.files import files_below

TENTH = 2**256 // 10  # of all hashes: the first tenth is for testing, the second for validation
COLOUR = 8  # levels between channels; JPEG makes smaller differences
SIZE = 32  # pixels per side, by default
NUM_NAMED = 10  # classes, or skipped files, in a note


def load(folder: Path, *, size: int = SIZE, channels: int | None = None) -> Dataset:
    """Every picture below a folder; a file that cannot be read is skipped and named in the notes.

    Args:
        size: height and width of the images.
        channels: 1 grey, 3 colour; without it colour if any picture has some.

    Raises ValueError: too few pictures, two classes of the same name, or an invalid option.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels}, expected 1 for grey or 3 for colour")
    largest = math.isqrt(MAX_DIMS // (channels or 1))
    if not 1 <= size <= largest:
        raise ValueError(f"size is {size}, expected 1 to {largest}")
    paths = sorted(files_below(folder), key=_hash)
    names = sorted({path.parts[0] for path in paths if len(path.parts) > 1})
    for name, after in pairwise(sorted(names, key=str.casefold)):
        if name.casefold() == after.casefold():
            expected = "expected names that differ in more than capitals"
            raise ValueError(f"{folder} has the classes {name} and {after}, {expected}")
    images = np.empty((len(paths), 3, size, size), np.uint8)
    kept: list[Path] = []
    skipped = []
    for path in paths:
        try:
            if names and len(path.parts) == 1:
                raise ValueError("lies beside the folders of classes")
            picture, _ = open_picture(folder / path, 2 * size)
            images[len(kept)] = square(picture, size, "L" if channels == 1 else "RGB")
            kept.append(path)
        except (ValueError, OSError) as error:
            skipped.append(f"{path} ({str(error).removeprefix(f'{folder / path} ')})")
    if (num := len(kept)) < 3:
        expected = "expected 3 or more" + f"; {_note('files skipped', skipped)}" * bool(skipped)
        raise ValueError(f"{folder} holds {num} readable pictures, {expected}")
    images = images[:num]
    if channels is None:
        channels = 3 if any(np.ptp(x, axis=0).max() > COLOUR for x in images) else 1
    images = images if channels == 3 else images[:, 1:2]  # all three are equal, up to JPEG's errors
    shown = [path.parts[0] if names else "picture" for path in kept]
    classes, labels, counts = np.unique(shown, return_inverse=True, return_counts=True)
    # In the order of the hashes, the first images are for testing, the next for validation.
    every, hashes = Split.of(images, labels), [_hash(path) for path in kept]
    num_test, end_val = (sum(value < n * TENTH for value in hashes) for n in (1, 2))
    num_test = min(max(num_test, 1), num - 2)
    end_val = min(max(end_val, num_test + 1), num - 1)
    splits = every.part(end_val, num), every.part(num_test, end_val), every.part(0, num_test)
    name = f"folder:{folder.resolve().name}"
    spec = DataSpec(name, (channels, size, size), tuple(classes.tolist()))
    lengths = "{:,} to train, {:,} to validate, {:,} to test".format(*map(len, splits))
    kind = "colour" if channels == 3 else "grey"
    notes = [f"{num:,} pictures in {kind}, {size}x{size}: {lengths}"]
    if names:
        found = zip(classes, counts, strict=True)
        notes.append(_note("classes", [f"{name} {count:,}" for name, count in found]))
    if skipped:
        notes.append(_note("files skipped", skipped))
    return Dataset(*splits, spec, tuple(notes))


def _hash(name: Path) -> int:
    return int(hashlib.sha256(os.fsencode(name.as_posix())).hexdigest(), 16)


def _note(what: str, found: list[str]) -> str:
    more = f" and {len(found) - NUM_NAMED:,} more" if len(found) > NUM_NAMED else ""
    return f"{len(found):,} {what}: {', '.join(found[:NUM_NAMED])}{more}"
