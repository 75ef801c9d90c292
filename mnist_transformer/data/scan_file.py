"""All of MNIST in a file of the package: its images as scans, losslessly.

``scans.to_images`` turns the scans into MNIST's bytes. The few images whose scan is not known are
kept as they are. The order is MNIST's: 60,000 training images, then 10,000 test images.

The file, little-endian:

    bytes 0-13    the magic, which ends with the version
    bytes 14-45   SHA-256 of all that follows except L
    bytes 46-53   two uint32: the number of images N, and the length L of the next part
    then L bytes  lzma: N sides (0: no scan), N labels, 28 x 28 levels of each image without a scan
    then the end  the scans in the code of ``scan_coder``, the rarest side first
"""

import functools
import hashlib
import lzma
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_transformer.data import scan_coder
from mnist_transformer.data.scans import IMAGE, square, to_images
from mnist_transformer.utils import trees
from mnist_transformer.utils.terminal import stages

PACKAGED = Path(__file__).with_name("mnist.scans")
MAGIC = b"MNIST scans 1\n"
HEAD = 54  # bytes before the parts
BATCH = 1000  # images that the program makes at a time
_DECODING = threading.Lock()


@dataclass(frozen=True, eq=False)
class Scans:
    """Images as scans, kept in memory as one bit per scanned pixel."""

    sides: Tensor  # int64 (N,), 0 where an image has no scan
    labels: Tensor  # int64 (N,)
    leftovers: Tensor  # uint8 (n, 1, 28, 28): the images without a scan
    ink: NDArray[np.uint8]  # np.packbits of each scan (m, m), one after the other

    def __len__(self) -> int:
        return len(self.sides)

    @functools.cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where each image's bits end in ``ink`` (N,)."""
        return ((self.sides.numpy() ** 2 + 7) // 8).cumsum()

    def square(self, image: int) -> NDArray[np.uint8]:
        """One image's scan, (m, m) of 0 and 1; (0, 0) if it has none."""
        side = int(self.sides[image])
        bits = self.ink[self.ends[image - 1] if image else 0 : self.ends[image]]
        return np.unpackbits(bits, count=side * side).reshape(side, side)

    def canvas(self, index: Tensor, size: int) -> Tensor:
        """The scans of these images (B,), each centred on paper: uint8 (B, size, size) of 0 and 1.

        An image without a scan gives paper, and so does index -1. Raises ValueError if a scan is
        larger than the canvas.
        """
        canvas = np.zeros((len(index), size, size), np.uint8)
        for scan, image in zip(canvas, index.tolist(), strict=True):
            ink = self.square(image) if image >= 0 else np.zeros((0, 0), np.uint8)
            if len(ink) > size:
                raise ValueError(f"size is {size}, expected the side of scan {image}, {len(ink)}")
            place = square(len(ink), size)
            scan[place, place] = ink
        return torch.from_numpy(canvas)

    @functools.cached_property
    def images(self) -> Tensor:
        """All images, uint8 (N, 1, 28, 28), as MNIST's program makes them."""
        images = torch.zeros(len(self), 1, IMAGE, IMAGE, dtype=torch.uint8)
        images[self.sides == 0] = self.leftovers
        for side, group in groups(self.sides):
            for index in group.split(BATCH):
                images[index] = to_images(self.canvas(index, side), self.sides[index])
        return images

    def find(self, images: Tensor) -> Tensor:
        """The index of each of these images uint8 (B, 1, 28, 28), int64 (B,).

        -1 stands for an image that is not among those with a scan.
        """
        found = [self._known.get(hash(image.tobytes()), -1) for image in images.numpy()]
        index = torch.tensor(found, dtype=torch.int64)
        return index.where((self.images[index] == images).flatten(1).all(1), -1)

    @functools.cached_property
    def _known(self) -> dict[int, int]:
        """The image of each hash, for all images with a scan. A hash holds in its process alone."""
        images = self.images.numpy()
        return {hash(images[i].tobytes()): i for i in self.sides.nonzero()[:, 0].tolist()}


def groups(sides: Tensor) -> list[tuple[int, Tensor]]:
    """Each side that occurs, and the images that have it, the rarest side first."""
    found, counts = sides[sides > 0].unique(return_counts=True)
    ordered = found[counts.argsort(stable=True)].tolist()
    return [(side, (sides == side).nonzero()[:, 0]) for side in ordered]


def packed(scans: Iterable[Any]) -> NDArray[np.uint8]:
    """The ``ink`` of these scans (m, m), arrays or tensors, as ``Scans`` has it."""
    return np.concatenate([np.zeros(0, np.uint8), *map(np.packbits, scans)])


def reproducing(images: Tensor, labels: Tensor, sides: Tensor, ink: NDArray[np.uint8]) -> Scans:
    """These images as scans, except where the given scan does not reproduce the image.

    Args:
        images: uint8 (N, 1, 28, 28), with their labels int64 (N,).
        sides, ink: as in ``Scans``.
    """
    given = Scans(sides, labels, images[sides == 0], ink)
    sides = torch.where((given.images == images).flatten(1).all(1), sides, 0)
    right = map(given.square, sides.nonzero()[:, 0].tolist())
    return Scans(sides, labels, images[sides == 0], packed(right))


def pack(scans: Scans) -> bytes:
    """The content of a file of these scans; all of MNIST takes a minute."""
    fixed = (scans.sides, scans.labels, scans.leftovers)
    part = lzma.compress(b"".join(x.byte().numpy().tobytes() for x in fixed))
    grouped = [scans.canvas(index, side).numpy() for side, index in groups(scans.sides)]
    rest = part + scan_coder.encode(grouped)
    count, length = (struct.pack("<I", x) for x in (len(scans), len(part)))
    return MAGIC + hashlib.sha256(count + rest).digest() + count + length + rest


def read(path: Path) -> Scans:
    """The scans of a file. They are decoded once, in half a minute, and kept in the cache.

    Raises:
        ValueError: this is not such a file, or it is truncated or altered.
    """
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise ValueError(f"{path} begins with {content[:14]!r}, expected {MAGIC!r}")
    sha256, count, rest = content[14:46], content[46:50], content[HEAD:]
    if hashlib.sha256(count + rest).digest() != sha256:
        fault = "its SHA-256 differs from the one it names"
        raise ValueError(f"{path} is truncated or altered: {fault}")
    unpacker = lzma.LZMADecompressor()
    fixed = torch.frombuffer(bytearray(unpacker.decompress(rest)), dtype=torch.uint8)
    num_images = int.from_bytes(count, "little")
    sides, labels, leftovers = fixed.split([num_images, num_images, len(fixed) - 2 * num_images])
    cache = pooch.os_cache("mnist-transformer") / f"scans-{sha256.hex()[:16]}.safetensors"
    with _DECODING:  # one at a time, as two drawings of the demo may need them
        try:
            ink = trees.load_state(cache)["ink"].numpy()
        except (OSError, ValueError):  # it is missing or damaged
            ink = _decode(unpacker.unused_data, sides.long())
            with suppress(OSError):  # without a cache, the next process decodes too
                trees.save_state(cache, {"ink": torch.from_numpy(ink)})
    return Scans(sides.long(), labels.long(), leftovers.view(-1, 1, IMAGE, IMAGE), ink)


@functools.cache
def load_scans() -> Scans:
    """All of MNIST from the package, 70,000 images: see ``read``."""
    return read(PACKAGED)


def _decode(code: bytes, sides: Tensor) -> NDArray[np.uint8]:
    """The packed bits of all scans."""
    grouped = groups(sides)
    shapes = [(len(index), side, side) for side, index in grouped]
    scans: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)] * len(sides)
    done, total = 0, int((sides > 0).sum())
    with stages() as report:
        for (_, index), found in zip(grouped, scan_coder.decode(code, shapes), strict=True):
            for image, scan in zip(index.tolist(), found, strict=True):
                scans[image] = np.packbits(scan)
            done += len(index)
            report("decoding MNIST's scans", done, total)
    return np.concatenate(scans)
