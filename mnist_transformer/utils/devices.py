"""Devices by name, and what is fast on each of them."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)

if hasattr(os, "register_at_fork"):  # a fork would wait forever for its parent's threads
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def check_defaults() -> None:
    """Raises ValueError if torch's defaults are not those that models are written for."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if dtype != torch.float32 or device.type != "cpu":
        expected = "expected torch.float32 on cpu; pass the model's device to load instead"
        raise ValueError(f"torch's defaults are {dtype} on {device}, {expected}")


def find_device(name: str | None = None) -> torch.device:
    """The device of a name such as "cuda:1", else the best available; ValueError if missing."""
    if name is None:
        here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        name = next((kind for kind, is_here in here.items() if is_here), "cpu")
    try:
        found = torch.empty(1, device=name)
        found.tolist()  # fails on "meta", a device without values
        return found.device
    except (RuntimeError, AssertionError) as error:  # which one depends on torch's build
        reason = str(error).splitlines()[0].partition(". ")[0]  # the rest can be 3,000 characters
        raise ValueError(f"device is {name!r}, expected one that is here ({reason})") from error


def to_device(model: AnyModule, device: str | None = None) -> AnyModule:
    """The model, moved and in eval mode; ``device`` as in ``find_device``."""
    return model.to(find_device(device)).eval()


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    kind, fast = torch.device(device).type, False
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        # Without these instructions a bf16 matmul is emulated, hundreds of times slower.
        fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def fast_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which products run in ``fast_dtype``; it does nothing where that is float32."""
    fast = fast_dtype(device)
    return nullcontext() if fast == torch.float32 else torch.autocast(device.type, fast)


def fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """A context that leaves the random state, this device's too, as it was before."""
    return torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
