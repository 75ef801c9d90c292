"""Weights and training states as safetensors files: verified, atomic, and no pickle anywhere.

A checkpoint holds a model's tensors and, in the file's metadata header, what it takes to build
the model: ``format``, ``family`` (a key of FAMILIES), ``config`` (JSON of the frozen
dataclass), ``notes`` (JSON, free) and ``crc32`` of the tensors. A state holds any tree of
dicts and lists with tensors and JSON scalars at its leaves.
"""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from mnist_transformer.files import write_atomic
from mnist_transformer.models import FAMILIES
from mnist_transformer.models.base import Model

FORMAT = "mnist-transformer checkpoint 1"
STATE_FORMAT = "mnist-transformer state 1"
_LEAF = "tensor:"


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    **notes: str,
) -> None:
    """Write a model so that ``load`` rebuilds it: bit for bit, unless ``dtype`` rounds it.

    Args:
        path: replaced in one go; an error leaves what was there.
        dtype: of the stored floating-point weights.
        notes: remarks for whoever opens the file.

    Raises:
        OSError: the disk is full, the folder cannot be written, and the like.
    """
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    metadata = {
        "format": FORMAT,
        "family": family_of(model),
        "config": json.dumps(asdict(model.config)),
        "notes": json.dumps(notes),
    }
    _write(Path(path), tensors, metadata)


def load(path: str | os.PathLike[str]) -> Model:
    """The model of a checkpoint, on the CPU, in float32 and eval mode.

    Raises:
        ValueError: the file is missing, damaged, no checkpoint, or does not fit its model.
    """
    path = Path(path)
    tensors, metadata = _read(path, FORMAT)
    config_class, _ = FAMILIES.get(metadata.get("family", ""), (None, None))
    if config_class is None:
        raise ValueError(
            f"{path} holds a model of family {metadata.get('family')!r}, "
            f"expected one of {', '.join(FAMILIES)}"
        )
    config = _build_config(config_class, _header(metadata, "config", path), path)
    with torch.random.fork_rng(devices=[]):  # the caller's randomness is not ours to use up
        model: Model = config.build()
    _check_shapes({k: v.shape for k, v in model.state_dict().items()}, tensors, path)
    model.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    )
    return model.eval()


def read_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The notes of a checkpoint. Raises ValueError as ``load`` does, tensors unread."""
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(Path(path), error) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this package, expected {FORMAT!r}")
    notes: dict[str, str] = _header(metadata, "notes", Path(path))
    return notes


def ship(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a checkpoint, notes and all, with its weights rounded to bfloat16, half the size."""
    save(load(source), target, dtype=torch.bfloat16, **read_notes(source))


def save_state(path: str | os.PathLike[str], tree: Mapping[str, Any]) -> None:
    """Write a tree of dicts (keys: str) and lists over tensors and JSON scalars, atomically.

    Raises:
        OSError: as in ``save``.
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
    _write(Path(path), tensors, {"format": STATE_FORMAT, "tree": json.dumps(skeleton)})


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Undo ``save_state``, tensors on the CPU bit for bit; tuples have become lists.

    Raises:
        ValueError: the file is missing, damaged or no state.
    """
    path = Path(path)
    tensors, metadata = _read(path, STATE_FORMAT)

    def put(node: Any) -> Any:
        if isinstance(node, str) and node.startswith(_LEAF):
            return tensors[node.removeprefix(_LEAF)]
        if isinstance(node, dict):
            return {key: put(value) for key, value in node.items()}
        return [put(value) for value in node] if isinstance(node, list) else node

    tree: dict[str, Any] = put(_header(metadata, "tree", path))
    return tree


def family_of(model: Model) -> str:
    """The key of a model's class in FAMILIES."""
    for family, (_, model_class) in FAMILIES.items():
        if type(model) is model_class:
            return family
    raise ValueError(f"{type(model).__name__} is in no family, expected {', '.join(FAMILIES)}")


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    own = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    write_atomic(path, to_bytes(own, {**metadata, "crc32": str(_checksum(own))}))


def _read(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if metadata.get("format") != expected:
        raise ValueError(
            f"{path} is of format {metadata.get('format')!r}, expected {expected!r}, "
            "as this package writes it"
        )
    if metadata.get("crc32") != str(_checksum(tensors)):
        raise ValueError(f"{path} is damaged: its tensors do not have the expected checksum")
    return tensors, metadata


def _header(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(metadata.get(key, ""))
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path} has no readable {key} in its header, expected a JSON object")
    return values


def _unreadable(path: Path, error: Exception) -> ValueError:
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


def _build_config(config_class: Any, values: dict[str, Any], path: Path) -> Any:
    known = {field.name: field for field in fields(config_class)}
    unknown = sorted(values.keys() - known.keys())
    missing = sorted(
        name
        for name, field in known.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    )
    if unknown or missing:
        raise ValueError(
            f"{path} has a config with {', '.join(unknown + missing)} "
            f"{'unknown' if unknown else 'missing'}, expected the fields {', '.join(known)}"
        )
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has a config that {config_class.__name__} refuses: {error}"
        ) from error


def _check_shapes(expected: Mapping[str, Any], got: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted(expected.keys() | got.keys()):
        want = tuple(expected[name]) if name in expected else "none of that name"
        have = tuple(got[name].shape) if name in got else "nothing"
        if want != have:
            raise ValueError(f"{path} has {have} for tensor {name}, expected {want}")
