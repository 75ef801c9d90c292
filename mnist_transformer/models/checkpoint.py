"""A model as a safetensors file: verified, atomic, and no pickle anywhere.

A checkpoint holds a model's tensors and, in the file's metadata header, what it takes to build
the model: ``format``, ``family`` (a key of FAMILIES), ``config`` (JSON of the frozen
dataclass, which begins with the data set) and ``notes`` (JSON, free). The checksum covers all of
it. In format 1 it covered the tensors alone, and a config had no data set: it was MNIST.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.models import FAMILIES
from mnist_transformer.models.base import Model
from mnist_transformer.utils import trees

KIND = "checkpoint"
OF_DATA = {"image_size", "channels", "num_levels", "num_classes"}  # fields of format 1


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    **notes: Any,
) -> None:
    """Write a model so that ``load`` rebuilds it: bit for bit, unless ``dtype`` rounds it.

    Args:
        path: replaced in one go; an error leaves what was there.
        dtype: of the stored floating-point weights.
        notes: JSON values, for whoever opens the file.

    Raises:
        OSError: the disk is full, the folder cannot be written, and the like.
    """
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    metadata = {
        "family": family_of(model),
        "config": json.dumps(asdict(model.config)),
        "notes": json.dumps(notes),
    }
    trees.write(Path(path), tensors, metadata, KIND)


def load(path: str | os.PathLike[str]) -> Model:
    """The model of a checkpoint, on the CPU, in float32 and eval mode.

    Raises:
        ValueError: the file is missing, damaged, no checkpoint, or does not fit its model.
    """
    path = Path(path)
    tensors, metadata = trees.read(path, KIND)
    family, values = metadata.get("family", ""), trees.header(metadata, "config", path)
    if trees.is_format_1(metadata):
        family, values = _of_format_1(family, values)
    config_class, _ = FAMILIES.get(family, (None, None))
    if config_class is None:
        raise ValueError(
            f"{path} holds a model of family {family!r}, expected one of {', '.join(FAMILIES)}"
        )
    config = _build_config(config_class, values, path)
    with torch.random.fork_rng(devices=[]):  # the caller's randomness is not ours to use up
        model: Model = config.build()
    _check_shapes({k: v.shape for k, v in model.state_dict().items()}, tensors, path)
    model.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    )
    return model.eval()


def read_notes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes of a checkpoint. Raises ValueError as ``load`` does, tensors unread."""
    metadata = trees.read_metadata(Path(path), KIND)
    return trees.header(metadata, "notes", Path(path))


def ship(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a checkpoint, notes and all, with its weights rounded to bfloat16, half the size."""
    save(load(source), target, dtype=torch.bfloat16, **read_notes(source))


def family_of(model: Model) -> str:
    """The key of a model's class in FAMILIES."""
    for family, (_, model_class) in FAMILIES.items():
        if type(model) is model_class:
            return family
    raise ValueError(f"{type(model).__name__} is in no family, expected {', '.join(FAMILIES)}")


def _of_format_1(family: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Family and config of a format 1 file in today's terms."""

    def with_data(config: dict[str, Any], size: int, channels: int, classes: int) -> dict[str, Any]:
        kept = {k: v for k, v in config.items() if k not in OF_DATA}
        spec = replace(
            MNIST,
            shape=(channels, size, size),
            class_names=tuple(map(str, range(classes))),
            num_levels=config.get("num_levels", 256),
        )
        return {"data": spec.to_json(), **kept}

    tokenizer = values.get("tokenizer")
    sized = tokenizer if isinstance(tokenizer, dict) else values
    size, channels = sized.get("image_size", 28), sized.get("channels", 1)
    classes = values.get("num_classes", 10)
    values = with_data(values, size, channels, classes)
    if isinstance(tokenizer, dict):
        values["tokenizer"] = with_data(tokenizer, size, channels, classes)
    return "patch-law" if family == "patch" else family, values


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
