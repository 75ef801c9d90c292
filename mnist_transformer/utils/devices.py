"""Devices by name, and what is fast on each of them."""

from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def find_device(name: str | None = None) -> torch.device:
    """The device of a name; without one a CUDA GPU where there is one, else the CPU.

    Raises:
        ValueError: it is unknown or not here.
    """
    try:
        return torch.empty(
            1, device=name or ("cuda" if torch.cuda.is_available() else "cpu")
        ).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, by its build
        reason = str(error).splitlines()[0]
        raise ValueError(f"device is {name!r}, expected one that is here ({reason})") from error


def to_device(model: AnyModule, device: str | None = None) -> AnyModule:
    """The model, moved and in eval mode; ``device`` as in ``find_device``."""
    return model.to(find_device(device)).eval()


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        # Without these instructions a bf16 matmul is emulated, hundreds of times slower.
        fast = torch.cpu._is_avx512_bf16_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def fast_autocast(device: torch.device) -> torch.autocast:
    """A context in which products run in ``fast_dtype``; it does nothing where that is float32."""
    fast = fast_dtype(device)
    return torch.autocast(device.type, fast, enabled=fast != torch.float32)


def fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """A context after which random numbers, this device's too, go on as if it had not been."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
