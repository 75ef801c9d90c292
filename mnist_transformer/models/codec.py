"""Images as a file of about the size that a model's likelihood promises.

Images are coded without a class, in blocks. Each block is one drawing on one thread of the CPU:
the last bits of a logit depend on the batch, so encoder and decoder must take the same steps. A
file:

    3 bytes   the magic, which ends with the version
    4 bytes   CRC-32 of all that follows
    then      the header, deflated JSON
    2 bytes   of the CRC-32 of the model's own file; the images' CRC-32 finds what it misses
    then      the images that the model cannot code, or codes no better, deflated
    blocks    each the CRC-32 of its images (4 bytes) and their code

If the file is smaller uncoded, its header holds only the axes, and the values follow as they are.
"""

import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from mnist_transformer.data.idx import MAX_BYTES
from mnist_transformer.data.raw import Names, Values, to_images, to_values
from mnist_transformer.models.base import evaluating
from mnist_transformer.models.loading import companion, find_weights
from mnist_transformer.networks.entropy import Coder
from mnist_transformer.utils import trees
from mnist_transformer.utils.checks import from_json
from mnist_transformer.utils.files import short_name
from mnist_transformer.utils.processes import in_processes

MAGIC = b"mt\x02"
BLOCK = 256  # images drawn at once; a part of the format, as is the dictionary of headers
USUAL = b'"names":[".png"],"lengths":[0]}' + b"".join(
    b' {"model":"mnist-scan","torch":"2.13.0+cpu","cpu":"%s","axes":[1,28,28],"lengths":[0]}' % cpu
    for cpu in (b"DEFAULT", b"AVX2", b"AVX512")
)
MAX_PROCESSES = 8  # each needs the memory to draw a block

Progress = Callable[[str, int, int | None], None]
Job = tuple[Path, int, tuple[Any, ...], bytes | None]
"""A block: a model's file, the number of images, and their ``source`` or their code."""


@dataclass(frozen=True)
class Header:
    """A file's header; empty fields are left out."""

    model: str = ""  # "": the values are not coded
    torch: str = ""
    cpu: str = ""  # the instructions that torch used
    axes: tuple[int, ...] = ()  # of an IDX file
    names: tuple[str, ...] = ()  # of a folder's pictures
    lengths: tuple[int, ...] = ()  # of all parts but the last, which fills the file
    not_coded: tuple[int, ...] = ()  # numbers of images


def encode(values: Values, names: Names, model: str, report: Progress) -> bytes:
    """The content of a file of images, given as ``data.raw.read`` returns them.

    Args:
        model: named as in ``load``; ValueError if it cannot code images, or not these.
        report: called with the stage, the number of blocks done, and their total.
    """
    Coder()  # raises before any work
    path = find_weights(model)
    drawer = companion(path, "cpu")
    images = drawer.check_images(to_images(values, drawer.image_shape))
    with torch.no_grad():
        is_coded, *source = drawer.source(images)
    index = is_coded.nonzero()[:, 0]
    parts = zip(*(column.split(BLOCK) for column in source), strict=True)
    jobs: list[Job] = [
        (path, len(part[0]), tuple(x.numpy() for x in part), None) for part in parts if len(index)
    ]
    blocks = []
    for block, (code, _) in zip(index.split(BLOCK), _each(jobs, "encoding", report), strict=False):
        pixels = images[block].numpy().tobytes()
        if len(code) < len(_deflate(pixels)):
            blocks.append(_crc(pixels) + code)
        else:
            is_coded[block] = False
    others = images[~is_coded].numpy().tobytes()
    body = [_deflate(others) if others else b"", *blocks]
    header = Header(
        short_name(model),
        *_here(),
        axes=() if names else values.shape,
        names=names,
        lengths=tuple(map(len, body[:-1])),
        not_coded=tuple((~is_coded).nonzero()[:, 0].tolist()),
    )
    content = _deflate(_json(header)) + _crc(path.read_bytes())[:2] + b"".join(body)
    if not names:
        as_it_is = _deflate(_json(Header(axes=values.shape))) + values.tobytes()
        content = min(content, as_it_is, key=len)
    return MAGIC + _crc(content) + content


def decode(
    content: bytes, name: str, model: str | None, report: Progress, note: Callable[[str], None]
) -> tuple[Values, Names]:
    """Undo ``encode``; ValueError if the decoded images are not the encoded ones.

    Args:
        name: of the file, for messages.
        model: the one to use; by default the one that the file names.
        note: called with a sentence if another torch or processor wrote the file.
    """
    header, body = _open(content, name)
    if header.model:
        Coder()  # like the next lines, raises errors that are not the file's fault
        path = find_weights(model or PurePath(header.model).name)
        shape = companion(path, "cpu").image_shape
    try:
        if not header.model:
            return np.frombuffer(body.read(), np.uint8).reshape(header.axes), ()
        wrote, here = (f"torch {x} with {y}" for x, y in ((header.torch, header.cpu), _here()))
        if wrote != here:
            note(f"{name} was written by {wrote}: trying with {here}, which may compute otherwise")
        if _crc(path.read_bytes())[:2] != body.read(2):
            expected = f"expected those of {header.model} that wrote it: name them with --model"
            raise ValueError(f"{name} does not belong to the weights {path}, {expected}")
        num_images, not_coded = len(header.names) or header.axes[0], np.array(header.not_coded, int)
        fits = bool(header.names) or prod(header.axes[1:]) == prod(shape)
        if not fits or num_images * prod(shape) > MAX_BYTES or (not_coded >= num_images).any():
            raise ValueError(f"{name} has a header that does not fit {path}: {header.axes}")
        images = np.zeros((num_images, *shape), np.uint8)
        others, *blocks = (body.read(length) for length in (*header.lengths, -1))
        images[not_coded] = np.frombuffer(_inflate(others)[0], np.uint8).reshape(-1, *shape)
        index = np.delete(np.arange(len(images)), not_coded)
        indices = [index[start : start + BLOCK] for start in range(0, len(index), BLOCK)]
        jobs: list[Job] = [
            (path, len(index), (), block[4:]) for index, block in zip(indices, blocks, strict=True)
        ]
        decoded = _each(jobs, "decoding", report)
        for index, block, (_, found) in zip(indices, blocks, decoded, strict=True):
            if _crc(found.tobytes()) != block[:4]:
                which = f"images {index[0] + 1:,} to {index[-1] + 1:,}"
                wrong = f"{which} do not decode to their checksum; {wrote} wrote them"
                raise ValueError(f"{name}: {wrong}")
            images[index] = found
        return to_values(torch.from_numpy(images), header.axes or images.shape), header.names
    except (zlib.error, ValueError, LookupError, RuntimeError, MemoryError) as error:
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        raise ValueError(f"{name} has content that compress did not write ({error})") from error


def _each(jobs: list[Job], stage: str, report: Progress) -> Iterator[tuple[bytes, Values]]:
    """``_code`` of each job in turn, in several processes where there are several jobs."""
    num_processes = max(1, min(len(jobs), torch.get_num_threads(), MAX_PROCESSES))
    results = in_processes(_code, jobs, num_processes) if num_processes > 1 else map(_code, jobs)
    for done, result in enumerate(results, start=1):
        report(stage, done, len(jobs))
        yield result


def _code(job: Job) -> tuple[bytes, Values]:
    """A block's code, and its images."""
    path, num_images, source, code = job
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, coder = companion(path, "cpu"), Coder(code)
        with evaluating(model), torch.inference_mode():
            cond = model.check_cond(None, num_images)
            images = model.code(coder, cond, [torch.from_numpy(x) for x in source])
        return coder.finish(), images.numpy()
    finally:
        torch.set_num_threads(num_threads)


# --- the container ---


def _open(content: bytes, name: str) -> tuple[Header, io.BytesIO]:
    """The header, and what follows it."""
    if not content.startswith(MAGIC):
        expected = f"expected {MAGIC!r}, format {MAGIC[2]} of compress"
        raise ValueError(f"{name} begins with {content[:3]!r}, {expected}")
    if _crc(content[7:]) != content[3:7]:
        raise ValueError(f"{name} is truncated or damaged: its content has another checksum")
    try:
        head, body = _inflate(content[7:])
        header: Header = from_json(Header, trees.parse(head.decode(errors="replace")))
        if not (header.names or header.axes) or prod(header.axes) > MAX_BYTES:
            raise ValueError(f"it has {header.axes} values")
    except (zlib.error, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} has a header that compress did not write ({error})") from error
    return header, io.BytesIO(body)


def _here() -> tuple[str, str]:
    """Torch's version, and the instructions that it uses; logits may depend on both."""
    return str(torch.__version__), torch.backends.cpu.get_cpu_capability()


def _json(header: Header) -> bytes:
    told = {name: value for name, value in asdict(header).items() if value}
    return json.dumps(told, separators=(",", ":")).encode()


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=USUAL)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes) -> tuple[bytes, bytes]:
    """The inflated bytes, and those that follow."""
    unpacker = zlib.decompressobj(-15, zdict=USUAL)
    return unpacker.decompress(data, MAX_BYTES), unpacker.unused_data
