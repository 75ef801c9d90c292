"""Safetensors files that can be trusted: verified, written atomically, no pickle anywhere.

A file holds tensors and a header of strings, with a checksum. A tree is dicts and lists over
tensors and JSON scalars, such as the state of a training run.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from mnist_transformer.utils.files import write_atomic

STATE_FORMAT = "mnist-transformer state 1"
_LEAF = "tensor:"


def save_state(path: str | os.PathLike[str], tree: Mapping[str, Any]) -> None:
    """Write a tree of dicts (keys: str) and lists over tensors and JSON scalars, atomically.

    Raises:
        OSError: the disk is full, the folder cannot be written, and the like.
    """
    tensors: dict[str, Tensor] = {}

    def pull(node: Any, place: str) -> Any:
        if isinstance(node, Tensor):
            tensors[place] = node
            return _LEAF + place
        if isinstance(node, Mapping):
            assert all(isinstance(key, str) for key in node), node.keys()
            return {key: pull(value, f"{place}/{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [pull(value, f"{place}/{index}") for index, value in enumerate(node)]
        assert node is None or isinstance(node, bool | int | float | str), node
        assert not (isinstance(node, str) and node.startswith(_LEAF)), node
        return node

    skeleton = pull(tree, "")
    write(Path(path), tensors, {"format": STATE_FORMAT, "tree": json.dumps(skeleton)})


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Undo ``save_state``, tensors on the CPU bit for bit; tuples have become lists.

    Raises:
        ValueError: the file is missing, damaged or no state.
    """
    path = Path(path)
    tensors, metadata = read(path, STATE_FORMAT)

    def put(node: Any) -> Any:
        if isinstance(node, str) and node.startswith(_LEAF):
            return tensors[node.removeprefix(_LEAF)]
        if isinstance(node, dict):
            return {key: put(value) for key, value in node.items()}
        return [put(value) for value in node] if isinstance(node, list) else node

    tree: dict[str, Any] = put(header(metadata, "tree", path))
    return tree


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    own = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    write_atomic(path, to_bytes(own, {**metadata, "crc32": str(_checksum(own))}))


def read(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    if metadata.get("format") != expected:
        raise ValueError(
            f"{path} is of format {metadata.get('format')!r}, expected {expected!r}, "
            "as this package writes it"
        )
    if metadata.get("crc32") != str(_checksum(tensors)):
        raise ValueError(f"{path} is damaged: its tensors do not have the expected checksum")
    return tensors, metadata


def header(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(metadata.get(key, ""))
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path} has no readable {key} in its header, expected a JSON object")
    return values


def unreadable(path: Path, error: Exception) -> ValueError:
    if not path.exists():
        return ValueError(f"{path} does not exist, expected a safetensors file of this package")
    return ValueError(
        f"{path} cannot be read, expected a whole safetensors file of this package ({error})"
    )


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
