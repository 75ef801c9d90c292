"""A device that is not there: tensors say "mps", their numbers lie on the CPU.

As on Apple's GPU nothing is float64, and tensors of two devices do not mix, except scalars and
indices. Whatever would break either rule raises AssertionError.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

MPS, META = torch.device("mps"), torch.device("meta")  # torch takes no "mps" where it has none
aten = torch.ops.aten
MIXING = (aten.copy_.default, aten._to_copy.default, aten.index.Tensor)


class OnStub(Tensor):
    """A tensor on the device; ``held`` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnStub":
        assert held.dtype != torch.float64, "there is no float64 on this device"
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=META,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:
        return MPS

    @property
    def is_meta(self) -> bool:
        return False

    def tolist(self) -> list[Any]:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation, on the numbers; its results are where those of its arguments are."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_stub = any(isinstance(x, OnStub) for x in tensors)
    if on_stub and func not in MIXING:
        assert all(isinstance(x, OnStub) or x.ndim == 0 for x in tensors), f"{func} mixes devices"
    if kwargs.get("device") is not None:
        on_stub = torch.device(kwargs["device"]).type in ("mps", "meta")
        kwargs = {**kwargs, "device": torch.device("cpu")}
    numbers = tree_map(lambda x: x.held if isinstance(x, OnStub) else x, (args, kwargs))
    out = func(*numbers[0], **numbers[1])
    written = [x for x in func._schema.arguments if x.alias_info and x.alias_info.is_write]
    if written and len(func._schema.returns) == 1:
        return args[0]  # in place
    return tree_map(lambda x: OnStub(x) if on_stub and isinstance(x, Tensor) else x, out)


class _Numbers(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Names(TorchFunctionMode):
    """Where torch would refuse the name of the device, it gets another."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def renamed(x: Any) -> Any:
            return META if isinstance(x, torch.device | str) and x in (MPS, "mps") else x

        args, kwargs = args, kwargs or {}
        if func is not torch.device:
            args, kwargs = tree_map(renamed, (args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def stub_device() -> Iterator[None]:
    """The device is there while this lasts."""
    with pytest.MonkeyPatch.context() as patch, _Names(), _Numbers():
        patch.setattr(torch, "inference_mode", torch.no_grad)  # which takes no such tensors
        patch.setattr(torch.mps, "get_rng_state", lambda device="mps": torch.get_rng_state())
        patch.setattr(torch.mps, "set_rng_state", lambda x, device="mps": torch.set_rng_state(x))
        yield
