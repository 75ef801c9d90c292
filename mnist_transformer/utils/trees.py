"""Safetensors files, verified when read and written atomically.

A file holds tensors and a header of strings, with a checksum. A tree consists of dicts (keys: str)
and lists over tensors and JSON scalars, such as the state of a training run.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.utils._pytree import KeyPath, keystr, tree_map, tree_map_with_path

from mnist_transformer.utils.files import write_atomic

KIND = "state"
CHECKSUM = "crc32"
_LEAF = "tensor:"


def save_state(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree, atomically; raises OSError."""
    tensors: dict[str, Tensor] = {}

    def pull(place: KeyPath, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors[keystr(place)] = leaf
        return _LEAF + keystr(place)

    write(path, tensors, {"tree": json.dumps(tree_map_with_path(pull, tree))}, KIND)


def load_state(path: Path) -> dict[str, Any]:
    """Undo ``save_state``, tensors on the CPU bit for bit, tuples as lists; errors as ``read``."""
    tensors, metadata = read(path, KIND)

    def put(leaf: Any) -> Any:
        is_tensor = isinstance(leaf, str) and leaf.startswith(_LEAF)
        # A copy: the file is memory-mapped, and would keep its disk space after it is deleted.
        return tensors[leaf.removeprefix(_LEAF)].clone() if is_tensor else leaf

    return tree_map(put, header(metadata, "tree", path))


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], kind: str) -> None:
    """Write a file of this kind, atomically; raises OSError."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
    metadata = {"format": f"mnist-transformer {kind} 2", **metadata}
    write_atomic(path, to_bytes(own, {**metadata, CHECKSUM: str(checksum(own, metadata))}))


def read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file, verified; ValueError: missing, damaged or of another kind."""
    metadata = read_metadata(path, kind)
    with _open(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    covered = None if is_format_1(metadata) else metadata
    if metadata.get(CHECKSUM) != str(checksum(tensors, covered)):
        raise ValueError(f"{path} is damaged: its content does not have the expected checksum")
    return tensors, metadata


def read_metadata(path: Path, kind: str) -> dict[str, str]:
    """The metadata of a file of this kind, without its tensors; errors as in ``read``."""
    with _open(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    if (found := metadata.get("format")) not in [f"mnist-transformer {kind} {n}" for n in (1, 2)]:
        expected = f"expected 'mnist-transformer {kind} 2', as this package writes it"
        raise ValueError(f"{path} is of format {found!r}, {expected}")
    return metadata


def is_format_1(metadata: Mapping[str, str]) -> bool:
    return metadata["format"].endswith(" 1")


def header(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    """A JSON object of the metadata; ValueError if there is none."""
    values = parse(metadata.get(key, ""))
    if not isinstance(values, dict):
        raise ValueError(f"{path} has no readable {key} in its header, expected a JSON object")
    return values


def parse(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the latter for endless nesting
        return None


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise OSError("it is not a file")
        with safe_open(str(path), "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        wrong = "cannot be read" if path.exists() else "does not exist"
        expected = "expected a whole safetensors file of this package"
        raise ValueError(f"{path} {wrong}, {expected} ({error})") from error


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> int:
    """CRC-32 of the metadata and of every tensor's name, type, shape and bytes.

    Without metadata, as in format 1, it covers the tensors' bytes alone.
    """
    crc = 0
    if metadata is not None:
        covered = {key: value for key, value in metadata.items() if key != CHECKSUM}
        shapes = {name: [str(x.dtype), *x.shape] for name, x in tensors.items()}
        crc = zlib.crc32(json.dumps([covered, shapes], sort_keys=True).encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
