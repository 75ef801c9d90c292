"""The setup of a run: recipe, tokenizer, device, precision, processes, stop signals."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env, patch_environment
from filelock import FileLock, Timeout

from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import Model
from mnist_transformer.models.loading import find_weights
from mnist_transformer.recipes import Recipe
from mnist_transformer.utils.devices import check_defaults, fast_dtype, find_device

# In an environment set up for other programs, these would silently change a recipe.
OVERRULED = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_DYNAMO_BACKEND": "no"}
for _name in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER"):
    OVERRULED[f"ACCELERATE_USE_{_name}"] = "false"


def override(
    recipe: Recipe,
    max_seconds: float | None,
    epochs: float | None,
    batch_size: int | None,
    lr: float | None,
) -> Recipe:
    """The recipe with the given values in place of its own; ValueError if one is invalid."""
    if max_seconds is not None or epochs is not None:
        recipe = replace(recipe, max_seconds=max_seconds, epochs=epochs)
    if batch_size is not None:
        recipe = replace(recipe, batch_size=batch_size)
    if lr is not None:
        recipe = replace(recipe, adamw_lr=lr, muon_lr=recipe.muon_lr * (lr / recipe.adamw_lr))
    return recipe


def give_tokenizer(model: Model, recipe: Recipe, runs: Path) -> None:
    """Give a model over codes the tokenizer that its recipe names: a run in ``runs``, else shipped.

    Raises ValueError: the tokenizer is missing, or the model expects another one, or none.
    """
    name, take = recipe.tokenizer, getattr(model, "set_tokenizer", None)
    if name is None and take is None:
        return
    if name is None or take is None:
        expected = f"{'one' if name is None else 'none'} for a {type(model).__name__}"
        raise ValueError(f"recipe {recipe.name} names the tokenizer {name}, expected {expected}")
    path = runs / name / "model.safetensors"
    try:
        path = path if path.is_file() else find_weights(name)
    except ValueError as error:
        needs = f"recipe {recipe.name} needs the tokenizer {name}, which is neither shipped nor"
        first = f"train it first with `mnist-transformer train {name}`"
        raise ValueError(f"{needs} in {runs}: {first}") from error
    take(checkpoint.load(path))


def make_accelerator(out: Path, device: str | None) -> Accelerator:
    """An accelerator for a device, in bf16 where that is fast; logs to out/tensorboard.

    Raises ValueError: the device is not available, or a launcher gives each process its own.
    """
    check_defaults()
    # accelerate keeps one global state per process; a second run may want another device.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    device = device or os.environ.get("ACCELERATE_TORCH_DEVICE")  # accelerate takes it no other way
    cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    variables = dict(OVERRULED)
    if device is not None:
        if device != "cpu" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            expected = "expected none: the launcher gives each process its own"
            raise ValueError(f"device is {device!r}, {expected}")
        find_device(device)
        variables["ACCELERATE_TORCH_DEVICE"] = device
    with patch_environment(**variables):
        place = PartialState(cpu=cpu).device
        return Accelerator(
            cpu=cpu,
            mixed_precision="bf16" if fast_dtype(place) == torch.bfloat16 else "no",
            log_with="tensorboard",
            project_dir=out,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )


def claim(folder: Path) -> AbstractContextManager[Any]:
    """A context that keeps other runs out of a folder; ValueError if one uses it."""
    try:  # the system releases the lock however the process ends
        return FileLock(folder / ".lock", blocking=False).acquire()
    except Timeout as error:
        raise ValueError(f"{folder} is in use by another run, expected another folder") from error


@contextmanager
def quiet_writer() -> Iterator[None]:
    """A context in which TensorBoard's thread fails without a traceback, as on a full disk.

    ``Records`` report the error, which the thread passes on.
    """
    hook = threading.excepthook

    def unless_writer(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            hook(failed)

    threading.excepthook = unless_writer
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def stop_signals(on_continue: Callable[[], None]) -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, so that the current step can finish.

    A second SIGINT interrupts at once. SIGHUP stays ignored if it already is, as under nohup.
    ``on_continue`` is called when the process continues after SIGSTOP or Ctrl-Z.
    """
    received: list[int] = []
    sigcont, sighup = getattr(signal, "SIGCONT", None), getattr(signal, "SIGHUP", None)
    if sighup and signal.getsignal(sighup) == signal.SIG_IGN:  # Windows has neither
        sighup = None

    def handle(number: int, frame: FrameType | None) -> None:
        if number == sigcont:
            on_continue()
        elif received and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            received.append(number)

    with ExitStack() as after:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for number in filter(None, (signal.SIGINT, signal.SIGTERM, sighup, sigcont)):
                after.callback(signal.signal, number, signal.signal(number, handle))
        yield received


def agree(
    accelerator: Accelerator, loss: float, seconds: float, stopped: bool
) -> tuple[float, float, bool]:
    """The mean loss of all processes, the first one's clock, and whether any was told to stop."""
    if accelerator.num_processes == 1:
        return loss, seconds, stopped
    mine = torch.tensor([[loss, seconds, float(stopped)]], device=accelerator.device)
    every = accelerator.gather(mine)
    return float(every[:, 0].mean()), float(every[0, 1]), bool(every[:, 2].any())


def try_to_compile(model: Model) -> str:
    """Compile the model at its next run. Returns why that is impossible here, or an empty text."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=model.device))
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    model.compile()
    return ""


def uncompiled(recipe: Recipe) -> AbstractContextManager[object]:
    """A context in which a compiled model runs eagerly, for shapes that training never sees."""
    return torch.compiler.set_stance("force_eager") if recipe.compile else nullcontext()
