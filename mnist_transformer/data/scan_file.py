"""All of MNIST in a file of the package: its images as scans, losslessly.

``scans.to_images`` turns the scans into MNIST's bytes. The few images whose scan is not known are
kept as they are. The order is MNIST's: 60,000 training images, then 10,000 test images.

The file, little-endian:

    bytes 0-13    the magic, which ends with the version
    bytes 14-45   SHA-256 of all that follows
    bytes 46-53   two uint32: the number of images N, and the length L of the next part
    then L bytes  lzma: N sides (0: no scan), N labels, 28 x 28 levels of each image without a scan
    then the end  the scans in the code of ``scan_coder``, the rarest side first
"""

import functools
import hashlib
import lzma
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnist_transformer.data import scan_coder
from mnist_transformer.data.scans import IMAGE, square, to_images
from mnist_transformer.utils.files import write_atomic
from mnist_transformer.utils.terminal import stages

PACKAGED = Path(__file__).with_name("mnist.scans")
MAGIC = b"MNIST scans 1\n"
HEAD = struct.Struct(f"<{len(MAGIC)}s32sII")
BATCH = 1000  # images that the program makes at a time


@dataclass(frozen=True, eq=False)
class Scans:
    """Images as scans, in memory one bit per scanned pixel."""

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

    def bits(self, image: int) -> NDArray[np.uint8]:
        """The packed bits of one image's scan, none if it has no scan."""
        return self.ink[self.ends[image - 1] if image else 0 : self.ends[image]]

    def square(self, image: int) -> NDArray[np.uint8]:
        """One image's scan, (m, m) of 0 and 1; (0, 0) if it has none."""
        side = int(self.sides[image])
        return np.unpackbits(self.bits(image), count=side * side).reshape(side, side)

    def canvas(self, index: Tensor, size: int) -> Tensor:
        """The scans of these images (B,) in the middle of paper: uint8 (B, size, size) of 0 and 1.

        An image without a scan gives paper. Raises ValueError if a scan is larger than the canvas.
        """
        canvas = np.zeros((len(index), size, size), np.uint8)
        for scan, image, side in zip(
            canvas, index.tolist(), self.sides[index].tolist(), strict=True
        ):
            if side > size:
                raise ValueError(f"size is {size}, expected the side of scan {image}, {side}")
            place = square(side, size)
            scan[place, place] = self.square(image)
        return torch.from_numpy(canvas)

    @functools.cached_property
    def images(self) -> Tensor:
        """All images, uint8 (N, 1, 28, 28), as MNIST's program makes them."""
        images = torch.zeros(len(self), 1, IMAGE, IMAGE, dtype=torch.uint8)
        images[self.sides == 0] = self.leftovers
        for group in _groups(self.sides):
            for index in group.split(BATCH):
                side = int(self.sides[index[0]])
                images[index] = to_images(self.canvas(index, side), self.sides[index])
        return images

    def find(self, images: Tensor) -> Tensor:
        """The index of each of these images uint8 (B, 1, 28, 28), int64 (B,).

        -1 stands for an image that is not among those with a scan.
        """
        known = self._known
        index = [known.get(_digest(image), -1) for image in images.numpy()]
        return torch.tensor(index, dtype=torch.int64)

    @functools.cached_property
    def _known(self) -> dict[bytes, int]:
        """The image that a digest belongs to, of all that have a scan."""
        images = self.images.numpy()
        return {_digest(images[i]): i for i in self.sides.nonzero()[:, 0].tolist()}


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _groups(sides: Tensor) -> list[Tensor]:
    """The images of each side that occurs, the rarest side first."""
    counts = sides.bincount().tolist()
    occurring = [side for side in range(1, len(counts)) if counts[side]]
    return [(sides == side).nonzero()[:, 0] for side in sorted(occurring, key=counts.__getitem__)]


def reproducing(images: Tensor, labels: Tensor, sides: Tensor, ink: NDArray[np.uint8]) -> Scans:
    """These images as scans, where the scan given for an image gives it back.

    Args:
        images: uint8 (N, 1, 28, 28), with their labels int64 (N,).
        sides, ink: as in ``Scans``.
    """
    given = Scans(sides, labels, images[sides == 0], ink)
    right = (given.images == images).flatten(1).all(1)
    sides = torch.where(right, sides, 0)
    bits = [given.bits(image) for image in sides.nonzero()[:, 0].tolist()]
    return Scans(sides, labels, images[sides == 0], np.concatenate([np.zeros(0, np.uint8), *bits]))


def pack(scans: Scans) -> bytes:
    """The content of a file of these scans; a minute for all of MNIST."""
    fixed = (scans.sides, scans.labels, scans.leftovers)
    part = lzma.compress(b"".join(x.byte().numpy().tobytes() for x in fixed))
    groups = _groups(scans.sides)
    canvases = [scans.canvas(index, int(scans.sides[index[0]])).numpy() for index in groups]
    rest = part + scan_coder.encode(canvases)
    return HEAD.pack(MAGIC, _sha256(len(scans), rest), len(scans), len(part)) + rest


def read(path: Path) -> Scans:
    """The scans of a file. They are decoded once, in half a minute, and kept in the cache.

    Raises:
        ValueError: this is not such a file, or it is truncated or altered.
    """
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise ValueError(f"{path} begins with {content[:14]!r}, expected {MAGIC!r}")
    fault = ValueError(f"{path} is truncated or altered: its SHA-256 differs from the one it names")
    if len(content) < HEAD.size:
        raise fault
    _, sha256, num_images, length = HEAD.unpack_from(content)
    rest = content[HEAD.size :]
    if _sha256(num_images, rest) != sha256:
        raise fault
    fixed = torch.frombuffer(bytearray(lzma.decompress(rest[:length])), dtype=torch.uint8)
    sides, labels, leftovers = fixed.split([num_images, num_images, len(fixed) - 2 * num_images])
    cache = pooch.os_cache("mnist-transformer") / f"scans-{sha256.hex()[:16]}"
    ink = _cached(cache)
    if ink is None:
        ink = _decode(rest[length:], sides.long())
        with suppress(OSError):  # without a cache, the next process decodes too
            bits = ink.tobytes()
            write_atomic(cache, hashlib.sha256(bits).digest() + bits)
    return Scans(sides.long(), labels.long(), leftovers.view(-1, 1, IMAGE, IMAGE), ink)


@functools.cache
def load_scans() -> Scans:
    """All of MNIST from the package, 70,000 images: see ``read``."""
    return read(PACKAGED)


def _sha256(num_images: int, rest: bytes) -> bytes:
    return hashlib.sha256(struct.pack("<I", num_images) + rest).digest()


def _cached(cache: Path) -> NDArray[np.uint8] | None:
    """The bits that a file of the cache holds, None if there are none or they are damaged."""
    try:
        content = cache.read_bytes()
    except OSError:
        return None
    bits = content[32:]
    return np.frombuffer(bits, np.uint8) if hashlib.sha256(bits).digest() == content[:32] else None


def _decode(code: bytes, sides: Tensor) -> NDArray[np.uint8]:
    """The packed bits of all scans."""
    sizes = (sides.numpy() ** 2 + 7) // 8
    starts = sizes.cumsum() - sizes
    ink = np.zeros(sizes.sum(), np.uint8)
    groups = _groups(sides)
    shapes = [(len(index), *2 * (int(sides[index[0]]),)) for index in groups]
    done, total = 0, int((sides > 0).sum())
    with stages() as report:
        for index, scans in zip(groups, scan_coder.decode(code, shapes), strict=True):
            bits = np.packbits(scans.reshape(len(index), -1), axis=1)
            ink[starts[index.numpy(), None] + np.arange(bits.shape[1])] = bits
            done += len(index)
            report("decoding MNIST's scans", done, total)
    return ink
