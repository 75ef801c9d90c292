"""Speed: drawn and trained images per second, and the machine's peak.

The share of the peak is images/s times the floating-point operations of an image, over those per
second of one large matrix product on the same machine in the same run. The operations of matrix
products, convolutions and attention are counted as they run.
"""

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket
from torch.utils.flop_counter import FlopCounterMode

from mnist_transformer.data import Split
from mnist_transformer.evaluation.metrics import Progress, quiet
from mnist_transformer.models.base import GenerativeModel, Model
from mnist_transformer.recipes import Recipe
from mnist_transformer.training import optim
from mnist_transformer.utils.devices import fast_autocast, fast_dtype, fork_rng


def now(device: torch.device) -> float:
    """Seconds of a clock, once everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def sampling_speed(
    model: GenerativeModel, batch_size: int, *, repeats: int = 3, report: Progress = quiet
) -> float:
    """Images per second, drawn plainly in batches of that size: the median after a warm-up."""
    labels = torch.arange(batch_size) % model.num_classes
    seconds = []
    for repeat in range(repeats + 1):
        start = now(model.device)
        model.sample(labels, range(batch_size))
        seconds.append(now(model.device) - start)
        report(f"speed at batch {batch_size}", repeat + 1, repeats + 1)
    return batch_size / median(seconds[1:])


def matmul_peak(device: torch.device | str = "cpu", size: int | None = None) -> tuple[float, str]:
    """Floating-point operations per second of a size x size matrix product, and its dtype.

    The better of float32 and, where the device has it in hardware, bfloat16. By default
    large enough to saturate the device: 2,048 on a CPU, 8,192 on a GPU.
    """
    device = torch.device(device)
    size = size or (2048 if device.type == "cpu" else 8192)
    dtypes = {torch.float32, fast_dtype(device)}
    rates = [(_matmul_rate(size, d, device), str(d).removeprefix("torch.")) for d in dtypes]
    return max(rates)


def _matmul_rate(size: int, dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    seconds = []
    for _ in range(repeats + 1):
        start = now(device)
        a @ b
        seconds.append(now(device) - start)
    return 2 * size**3 / min(seconds[1:])


def _attention_flops(kernel: OpOverloadPacket, num_products: int) -> Callable[..., int]:
    """A counter of a fused kernel: ``num_products`` per head, half of each where it is causal.

    The kernels take their arguments in different orders, but give them the same names.
    """
    names = [argument.name for argument in kernel.default._schema.arguments]

    def count(*arguments: Any, **others: Any) -> int:
        given = dict(zip(names, arguments, strict=False)) | others
        (batch, heads, num_queries, head_dim), num_keys = given["query"], given["key"][2]
        share = 2 if given.get("is_causal", False) else 1
        return 2 * num_products * batch * heads * num_queries * num_keys * head_dim // share

    return count


# torch does not count the kernel for CPUs, and on GPUs takes causal attention for a full one.
# Forward two products; backward five: the scores again, and the gradients of weights, values,
# queries and keys.
_ATTENTION_FLOPS = {
    getattr(torch.ops.aten, name): _attention_flops(getattr(torch.ops.aten, name), num_products)
    for kernel in (
        "flash_attention_for_cpu",
        "flash_attention",
        "cudnn_attention",
        "efficient_attention",
    )
    for name, num_products in (
        (f"_scaled_dot_product_{kernel}", 2),
        (f"_scaled_dot_product_{kernel}_backward", 5),
    )
}


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of ``work``: products, convolutions, attention."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION_FLOPS) as counter:
        work()
    return int(counter.get_total_flops())


class Throughput(NamedTuple):
    """Training speed of a model on this machine.

    Attributes:
        images_per_second: forward, backward and optimizer step.
        flops_per_image: operations of one image's forward and backward pass.
        peak_flops: operations per second of the best large matrix product, in ``peak_dtype``.
        share_of_peak: images_per_second * flops_per_image / peak_flops.
    """

    batch_size: int
    images_per_second: float
    flops_per_image: float
    peak_flops: float
    peak_dtype: str
    share_of_peak: float


def throughput(
    model: Model,
    recipe: Recipe,
    split: Split,
    *,
    batch_size: int | None = None,
    num_steps: int = 10,
    peak_size: int | None = None,
    report: Progress = quiet,
) -> Throughput:
    """Train a copy of the model for a few steps, as the recipe does, and count.

    Args:
        split: real images, because the cost of a step may depend on them.
        batch_size: images per step; the recipe's by default.
        peak_size: rows and columns of the product that measures the peak, see ``matmul_peak``.

    Raises:
        ValueError: the split holds less than a batch.
    """
    batch_size = batch_size or recipe.batch_size
    if len(split) < batch_size:
        raise ValueError(f"got {len(split)} images, expected {batch_size} or more")
    device = model.device
    model = copy.deepcopy(model).train()
    optimizers = optim.build_optimizers(model, recipe)
    optim.set_rates(optimizers, 0.0)  # the work of a step, and the same weights after it
    batches = [
        split.batch(torch.arange(batch_size) + first)
        for first in range(0, len(split) - batch_size + 1, batch_size)[:num_steps]
    ]

    def gradients(images: Tensor, labels: Tensor) -> None:
        with fast_autocast(device):
            loss = model(images.to(device), labels.to(device)).mean()
        loss.backward()

    def every_gradient() -> None:
        for batch in batches:
            gradients(*batch)

    def step(images: Tensor, labels: Tensor) -> None:
        gradients(images, labels)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    peaks = [matmul_peak(device, peak_size)]
    with fork_rng(device):
        step(*batches[0])  # warm-up: buffers, kernels
        seconds = []
        for done, batch in enumerate(batches):
            start = now(device)
            step(*batch)
            seconds.append(now(device) - start)
            report("training speed", done + 1, len(batches))
        flops = count_flops(every_gradient)
    peaks.append(matmul_peak(device, peak_size))
    peak_flops, peak_dtype = max(peaks)
    images_per_second = batch_size * len(batches) / sum(seconds)
    flops_per_image = flops / (batch_size * len(batches))
    return Throughput(
        batch_size,
        images_per_second,
        flops_per_image,
        peak_flops,
        peak_dtype,
        images_per_second * flops_per_image / peak_flops,
    )
