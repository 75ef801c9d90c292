"""Speed: drawn and trained images per second, and the machine's peak.

The share of the peak is images/s times the floating-point operations per image, divided by those
per second of one large matrix product on the same machine in the same run. The operations of matrix
products, convolutions and attention are counted as they run.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mnist_transformer.data import Split
from mnist_transformer.evaluation.metrics import Progress, quiet
from mnist_transformer.models.base import GenerativeModel, Model
from mnist_transformer.recipes import Recipe
from mnist_transformer.training import optim
from mnist_transformer.training.runtime import try_to_compile, uncompiled
from mnist_transformer.utils.devices import fast_autocast, fast_dtype, fork_rng


def now(device: torch.device) -> float:
    """A clock in seconds, read once all work queued on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of ``work``, with all that it queues on the device."""
    start = now(device)
    work()
    return now(device) - start


def sampling_speed(
    model: GenerativeModel, batch_size: int, *, repeats: int = 3, report: Progress = quiet
) -> float:
    """Images drawn per second, plainly and in batches of that size: the median after a warm-up."""
    labels = torch.arange(batch_size) % model.num_classes
    seconds = []
    for repeat in range(repeats + 1):
        seconds.append(timed(model.device, lambda: model.sample(labels, range(batch_size))))
        report(f"speed at batch {batch_size}", repeat + 1, repeats + 1)
    return batch_size / median(seconds[1:])


def matmul_peak(device: torch.device, size: int | None = None) -> tuple[float, str]:
    """Floating-point operations per second of a size x size matrix product, and its dtype.

    The better of float32 and, where the device has it in hardware, bfloat16. By default
    large enough to saturate the device: 2,048 on a CPU, 8,192 on a GPU.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    rates = []
    for dtype in {torch.float32, fast_dtype(device)}:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = [timed(device, partial(torch.matmul, a, b)) for _ in range(6)]
        rates.append((2 * size**3 / min(seconds[1:]), str(dtype).removeprefix("torch.")))
    return max(rates)


def _attention_flops(kernel: Any, num_products: int, *arguments: Any, **others: Any) -> int:
    """FLOPs of a fused kernel: ``num_products`` matrix products per head, halved if causal."""
    # The kernels take their arguments in different orders, but give them the same names.
    names = [argument.name for argument in kernel.default._schema.arguments]
    given = dict(zip(names, arguments, strict=False)) | others
    (batch, heads, num_queries, head_dim), num_keys = given["query"], given["key"][2]
    share = 2 if given.get("is_causal", False) else 1
    return 2 * num_products * batch * heads * num_queries * num_keys * head_dim // share


# torch does not count the kernel for CPUs, and on GPUs counts causal attention as full.
# Forward two products; backward five: the scores again, and the gradients of weights, values,
# queries and keys.
_KERNELS = "flash_attention_for_cpu", "flash_attention", "cudnn_attention", "efficient_attention"
_ATTENTION_FLOPS = {
    kernel: partial(_attention_flops, kernel, num_products)
    for name in _KERNELS
    for suffix, num_products in (("", 2), ("_backward", 5))
    for kernel in [getattr(torch.ops.aten, f"_scaled_dot_product_{name}{suffix}")]
}


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of ``work``: products, convolutions, attention."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION_FLOPS) as counter:
        work()
    return int(counter.get_total_flops())


def throughput(
    model: Model, recipe: Recipe, split: Split, *, num_steps: int = 10, report: Progress = quiet
) -> dict[str, Any]:
    """Train a copy of the model for a few steps, as the recipe does, and measure; figures by name.

    A step is forward, backward and optimizer. ``flops_per_image`` counts forward and backward;
    ``peak_flops`` is per second, of the best large matrix product, in ``peak_dtype``. Images
    are real ones, because the cost of a step may depend on them.
    """
    device = model.device
    model = copy.deepcopy(model).train()
    optimizers = optim.build_optimizers(model, recipe)
    optim.set_rates(optimizers, 0.0)  # a step does its work but keeps the weights
    chosen = torch.arange(len(split))[: num_steps * recipe.batch_size]
    batches = [split.batch(index) for index in chosen.split(recipe.batch_size)]
    if recipe.compile:
        try_to_compile(model)

    def gradients(images: Tensor, labels: Tensor) -> None:
        with fast_autocast(device):
            loss = model(images.to(device), labels.to(device)).mean()
        loss.backward()

    def step(images: Tensor, labels: Tensor) -> None:
        gradients(images, labels)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    peak, seconds = matmul_peak(device), 0.0
    with fork_rng(device):
        for batch in batches[: 3 if recipe.compile else 1]:
            step(*batch)  # warm-up: buffers, kernels, compiling for sizes that change
        for done, batch in enumerate(batches):
            seconds += timed(device, partial(step, *batch))
            report("training speed", done + 1, len(batches))
        with uncompiled(recipe):
            flops = sum(count_flops(partial(gradients, *batch)) for batch in batches)
    peak_flops, peak_dtype = max(peak, matmul_peak(device))
    images_per_second = len(chosen) / seconds
    return {
        "batch_size": recipe.batch_size,
        "images_per_second": images_per_second,
        "flops_per_image": flops / len(chosen),
        "peak_flops": peak_flops,
        "peak_dtype": peak_dtype,
        "share_of_peak": images_per_second * flops / len(chosen) / peak_flops,
    }
