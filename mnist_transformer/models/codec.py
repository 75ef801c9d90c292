"""Images as a file of about the size that a model's likelihood promises.

Images are coded without a class, in blocks, each by a drawing of its own on one thread of the
CPU: encoder and decoder take the same steps, as the last bits of a logit depend on the batch. A
file:

    3 bytes   the magic, which ends with the version
    4 bytes   CRC-32 of all that follows
    then      the header, deflated JSON
    4 bytes   CRC-32 of the model's own file
    then      the images that the model cannot code, or not well, deflated
    a block   CRC-32 of its images (4 bytes), and their code

Where that is smaller, the header tells the axes alone and the values follow as they are.
"""

import functools
import io
import json
import os
import signal
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_transformer.data.idx import MAX_BYTES
from mnist_transformer.data.raw import Names, Values, to_images, to_values
from mnist_transformer.models.base import GenerativeModel, evaluating
from mnist_transformer.models.loading import find_weights, load
from mnist_transformer.networks.entropy import Decoder, Encoder, load_constriction
from mnist_transformer.utils.checks import from_json

MAGIC = b"mt\x01"
BLOCK = 256  # images drawn at once; like the dictionary below, a part of the format
USUAL = b'{"model":"mnist-scan","torch":"2.13.0+cpu","cpu":"AVX512","axes":[1,28,28],"lengths":[0]}'
MAX_PROCESSES = 8  # each takes the memory of drawing a block

Result = TypeVar("Result")
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Header:
    """A file's header; what is empty is left out."""

    model: str = ""  # "": the values are not coded
    torch: str = ""
    cpu: str = ""  # the instructions that torch used
    axes: tuple[int, ...] = ()  # of an IDX file
    names: tuple[str, ...] = ()  # of a folder's pictures
    lengths: tuple[int, ...] = ()  # of all parts but the last, which fills the file
    not_coded: tuple[int, ...] = ()  # numbers of images

    @property
    def num_images(self) -> int:
        return len(self.names) or self.axes[0]


def shape_of(model: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model codes, named as in ``load``."""
    return _load(find_weights(model)).image_shape


def encode(values: Values, names: Names, model: str, report: Progress) -> bytes:
    """The content of a file of images, given as ``data.raw.read`` does.

    Args:
        report: called with the stage, and the blocks that are done, of how many.

    Raises:
        ValueError: a model that codes no images or not these, or constriction is missing.
    """
    load_constriction()
    path = find_weights(model)
    coder = _load(path)
    images = coder.check_images(to_images(values, coder.image_shape))
    with torch.no_grad():
        is_coded, *source = coder.source(images)
    columns = zip(*(column.split(BLOCK) for column in source), strict=True)
    jobs = [(path, *(x.numpy() for x in part)) for part in columns if len(part[0])]
    codes, blocks = _each(_write, jobs, "encoding", report), []
    for index, code in zip(is_coded.nonzero()[:, 0].split(BLOCK), codes, strict=False):
        pixels = images[index].numpy().tobytes()
        if len(code) < len(_deflate(pixels)):
            blocks.append(_crc(pixels) + code)
        else:
            is_coded[index] = False
    others = images[~is_coded].numpy().tobytes()
    parts = [_deflate(others) if others else b"", *blocks]
    lengths = tuple(map(len, parts[:-1]))
    axes = () if names else values.shape
    not_coded = tuple((~is_coded).nonzero()[:, 0].tolist())
    header = Header(PurePath(model).name, *_here(), axes, names, lengths, not_coded)
    content = b"".join([_deflate(_json(header)), _crc(path.read_bytes()), *parts])
    if not names:
        content = min(content, _deflate(_json(Header(axes=axes))) + values.tobytes(), key=len)
    return MAGIC + _crc(content) + content


def decode(
    content: bytes, name: str, report: Progress, note: Callable[[str], None], model: str | None
) -> tuple[Values, Names]:
    """Undo ``encode``.

    Args:
        name: of the file, for messages.
        note: called with a sentence where another torch or processor wrote the file.
        model: the one to use; by default the one that the file names.

    Raises:
        ValueError: another file, a damaged one, or one that decodes to other images here.
    """
    load_constriction()
    header, body = _open(content, name)
    if not header.model:
        return np.frombuffer(body.read(), np.uint8).reshape(header.axes), ()
    wrote = f"torch {header.torch} with {header.cpu}"
    if (header.torch, header.cpu) != _here():
        here = "torch {} with {}".format(*_here())
        note(f"{name} was written by {wrote}, and {here} may compute otherwise: it is tried")
    path = find_weights(model or PurePath(header.model).name)
    if _crc(path.read_bytes()) != body.read(4):
        raise ValueError(
            f"{name} was written with other weights of {header.model} than those of {path}: "
            "name their checkpoint with --model"
        )
    images = np.zeros((header.num_images, *_load(path).image_shape), np.uint8)
    others, *blocks = (body.read(length) for length in (*header.lengths, len(content)))
    not_coded = np.array(header.not_coded, int)
    images[not_coded] = np.frombuffer(_inflate(others)[0], np.uint8).reshape(-1, *images.shape[1:])
    index = np.delete(np.arange(len(images)), not_coded)
    indices = [index[start : start + BLOCK] for start in range(0, len(index), BLOCK)]
    jobs = [(path, x[4:], len(index)) for x, index in zip(blocks, indices, strict=True)]
    found = _each(_read, jobs, "decoding", report)
    for index, block, decoded in zip(indices, blocks, found, strict=True):
        if _crc(decoded.tobytes()) != block[:4]:
            which = f"images {index[0] + 1:,} to {index[-1] + 1:,}"
            raise ValueError(f"{name}: {which} do not decode to their checksum; {wrote} wrote them")
        images[index] = decoded
    return to_values(torch.from_numpy(images), header.axes or images.shape), header.names


# --- the container ---


def _here() -> tuple[str, str]:
    """What the numbers may depend on."""
    return str(torch.__version__), torch.backends.cpu.get_cpu_capability()


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def _json(header: Header) -> bytes:
    told = {name: value for name, value in asdict(header).items() if value}
    return json.dumps(told, separators=(",", ":")).encode()


def _open(content: bytes, name: str) -> tuple[Header, io.BytesIO]:
    """The header, and what follows it."""
    if not content.startswith(MAGIC):
        raise ValueError(f"{name} begins with {content[:3]!r}, expected {MAGIC!r}: see compress")
    if _crc(content[7:]) != content[3:7]:
        raise ValueError(f"{name} is truncated or damaged: its content has another checksum")
    try:
        head, body = _inflate(content[7:])
        header: Header = from_json(Header, json.loads(head))
        if not (header.names or header.axes) or prod(header.axes) > MAX_BYTES:
            raise ValueError(f"it has {header.axes} values")
    except (zlib.error, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} has a header that is not compress's ({error})") from error
    return header, io.BytesIO(body)


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=USUAL)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes) -> tuple[bytes, bytes]:
    """What was deflated, and what follows it."""
    unpacker = zlib.decompressobj(-15, zdict=USUAL)
    return unpacker.decompress(data, MAX_BYTES), unpacker.unused_data


# --- the work, in several processes ---


def _each(
    function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], stage: str, report: Progress
) -> Iterator[Result]:
    """The results of jobs, in their order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    num_processes = min(len(jobs), cores or 1, MAX_PROCESSES)
    with ExitStack() as stack:
        results: Iterator[Result] = (function(*job) for job in jobs)
        if num_processes > 1:
            pool = ProcessPoolExecutor(num_processes, get_context("spawn"), _leave_interrupts)
            results = stack.enter_context(pool).map(function, *zip(*jobs, strict=True))
        for done, result in enumerate(results, start=1):
            report(stage, done, len(jobs))
            yield result


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the others


def _write(path: Path, *source: NDArray[Any]) -> bytes:
    """The code of one block, given what ``GenerativeModel.code`` takes."""
    coder = Encoder()
    with _on_one_thread(path) as model:
        cond = model.check_cond(None, len(source[0]))
        model.code(coder, cond, [torch.from_numpy(x) for x in source])
    return coder.finish()


def _read(path: Path, code: bytes, num_images: int) -> Values:
    with _on_one_thread(path) as model:
        return model.code(Decoder(code), model.check_cond(None, num_images), ()).numpy()


@contextmanager
def _on_one_thread(path: Path) -> Iterator[GenerativeModel]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with evaluating(_load(path)), torch.inference_mode():
            yield _load(path)
    finally:
        torch.set_num_threads(num_threads)


@functools.lru_cache(1)
def _load(path: Path) -> GenerativeModel:
    return load(path, "cpu")
