"""A model as a safetensors file, verified when read and written atomically.

A checkpoint holds a model's tensors and, in the file's metadata header, what it takes to build
the model: ``format``, ``family`` (a key of FAMILIES), ``config`` (JSON of the frozen
dataclass, which begins with the data set) and ``notes`` (JSON, free). The checksum covers all of
it. In format 1 it covered the tensors alone, and a config had no data set: MNIST was implied.
"""

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.models import FAMILIES, family_of
from mnist_transformer.models.base import Model
from mnist_transformer.utils import trees
from mnist_transformer.utils.checks import check_choice, from_json

KIND = "checkpoint"
OF_DATA = {"image_size", "channels", "num_levels", "num_classes"}  # fields of format 1


def save(
    model: Model, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, **notes: Any
) -> None:
    """Write a model so that ``load`` rebuilds it: bit for bit, unless ``dtype`` rounds it.

    Args:
        path: replaced atomically; an OSError leaves the old file there.
        dtype: of the stored floating-point weights.
        notes: JSON values, for whoever opens the file.
    """
    config = json.dumps(asdict(model.config))
    metadata = {"family": family_of(model.config), "config": config, "notes": json.dumps(notes)}
    trees.write(Path(path), _cast(model.state_dict(), dtype), metadata, KIND)


def load(path: str | os.PathLike[str]) -> Model:
    """The model of a checkpoint, on the CPU, in float32 and eval mode.

    Raises:
        ValueError: the file is missing, damaged, not a checkpoint, or does not fit its model.
    """
    path = Path(path)
    tensors, metadata = trees.read(path, KIND)
    family, values = metadata.get("family", ""), trees.header(metadata, "config", path)
    if trees.is_format_1(metadata):
        family, values = _of_format_1(family, values)
    check_choice(f"{path} holds a model whose family", family, FAMILIES)
    model = _build(FAMILIES[family][0], values, tensors, path)
    model.load_state_dict(_cast(tensors, torch.float32))
    return model.eval()


def read_notes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the notes of a checkpoint, not its tensors. Raises ValueError as ``load`` does."""
    return trees.header(trees.read_metadata(Path(path), KIND), "notes", Path(path))


def _of_format_1(family: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Family and config of a format 1 file in today's terms."""
    size, number = values.get("image_size", 28), values.get("num_classes", 10)
    data = asdict(MNIST) | {
        "shape": [values.get("channels", 1), size, size],
        "class_names": list(map(str, range(number))) if number in range(1000) else number,
        "num_levels": values.get("num_levels", 256),
    }
    values = {"data": data} | {k: v for k, v in values.items() if k not in OF_DATA}
    return "patch-law" if family == "patch" else family, values


def _build(
    config_class: Any, values: dict[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> Model:
    """A model whose weights have the names and shapes of the tensors.

    Each weight is counted as it is registered, before its memory is written. Building the model on
    the meta device instead would cost the import of 800 modules of torch, half a second.
    """
    number, size = itertools.count(1), sum(x.numel() for x in tensors.values())

    def count(module: Any, name: str, weight: Tensor | None) -> None:
        if next(number) > 2 * len(tensors):  # as with a depth of 10^9
            raise ValueError(f"it has more than twice the {len(tensors)} tensors of the file")
        if weight is not None and weight.numel() > size:
            shape = tuple(weight.shape)
            raise ValueError(f"a {name} of {shape} is more than the {size:,} numbers of the file")

    counting = register_module_parameter_registration_hook(count)
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
            model: Model = from_json(config_class, values).build()
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        name, reason = config_class.__name__, str(error).splitlines()[0]
        raise ValueError(f"{path} has a config that {name} refuses: {reason}") from error
    finally:
        counting.remove()
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[name].shape) if name in expected else "none of that name"
        have = tuple(tensors[name].shape) if name in tensors else "nothing"
        if want != have:
            raise ValueError(f"{path} has {have} for tensor {name}, expected {want}")
        if not tensors[name].isfinite().all():
            raise ValueError(f"{path} has a number in tensor {name} that is not finite")
    return model


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point tensors cast to ``dtype``, the others unchanged."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
