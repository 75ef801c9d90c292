"""How fast: drawn images a second, training images a second, and the machine's own best.

The share of the peak is images/s times the floating-point operations of an image's forward and
backward pass (matrix products and convolutions, counted as they run), over what one large
matrix product reaches on the same machine in the same run.
"""

import copy
import time
from contextlib import nullcontext
from itertools import islice
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mnist_transformer import optim
from mnist_transformer.data import Split
from mnist_transformer.metrics import Progress, quiet
from mnist_transformer.models.base import GenerativeModel, Model
from mnist_transformer.recipes import Recipe
from mnist_transformer.transformer import fast_dtype


def _now(device: torch.device) -> float:
    """Seconds of a clock, once everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def sampling_speed(
    model: GenerativeModel, batch_size: int, *, repeats: int = 3, report: Progress = quiet
) -> float:
    """Images a second drawn plainly in batches of that size: the median after a warm-up."""
    labels = torch.arange(batch_size) % model.num_classes
    seconds = []
    for repeat in range(repeats + 1):
        start = _now(model.device)
        model.sample(labels, range(batch_size))
        seconds.append(_now(model.device) - start)
        report(f"speed at batch {batch_size}", repeat + 1, repeats + 1)
    return batch_size / median(seconds[1:])


def matmul_peak(device: torch.device | str = "cpu", size: int = 2048) -> tuple[float, str]:
    """Floating-point operations a second of a size x size matrix product, and its dtype.

    The better of float32 and, where the device has it in hardware, bfloat16.
    """
    device = torch.device(device)
    dtypes = {torch.float32, fast_dtype(device)}
    rates = [(_matmul_rate(size, d, device), str(d).removeprefix("torch.")) for d in dtypes]
    return max(rates)


def _matmul_rate(size: int, dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    seconds = []
    for _ in range(repeats + 1):
        start = _now(device)
        a @ b
        seconds.append(_now(device) - start)
    return 2 * size**3 / min(seconds[1:])


class Throughput(NamedTuple):
    """Training speed of a model on this machine.

    Attributes:
        images_per_second: forward, backward and optimizer step.
        flops_per_image: operations of one image's forward and backward pass.
        peak_flops: operations a second of the best large matrix product, in ``peak_dtype``.
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
    peak_size: int = 2048,
    report: Progress = quiet,
) -> Throughput:
    """Train a copy of the model for a few steps, as the recipe does, and count.

    Args:
        split: real images, because what a step costs may depend on them.
        batch_size: images a step; the recipe's by default.
        peak_size: rows and columns of the product that measures the peak.

    Raises:
        ValueError: the split holds less than a batch.
    """
    batch_size = batch_size or recipe.batch_size
    if len(split.images) < batch_size:
        raise ValueError(f"got {len(split.images)} images, expected {batch_size} or more")
    device = model.device
    model = copy.deepcopy(model).train()
    optimizers = optim.build_optimizers(model, recipe)
    optim.set_rates(optimizers, 0.0)  # the work of a step, and the same weights after it
    batches = list(
        islice(
            zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True),
            min(num_steps, len(split.images) // batch_size),
        )
    )

    def gradients(images: Tensor, labels: Tensor) -> None:
        fast = fast_dtype(device)
        autocast = torch.autocast(device.type, fast) if fast != torch.float32 else nullcontext()
        with autocast:
            loss = model(images.to(device), labels.to(device)).mean()
        loss.backward()

    def step(images: Tensor, labels: Tensor) -> None:
        gradients(images, labels)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    peaks = [matmul_peak(device, peak_size)]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        step(*batches[0])  # warm-up: buffers, kernels
        seconds = []
        for done, batch in enumerate(batches):
            start = _now(device)
            step(*batch)
            seconds.append(_now(device) - start)
            report("training speed", done + 1, len(batches))
        with FlopCounterMode(display=False) as counter:
            for batch in batches:
                gradients(*batch)
    peaks.append(matmul_peak(device, peak_size))
    peak_flops, peak_dtype = max(peaks)
    images_per_second = batch_size * len(batches) / sum(seconds)
    flops_per_image = counter.get_total_flops() / (batch_size * len(batches))
    return Throughput(
        batch_size,
        images_per_second,
        flops_per_image,
        peak_flops,
        peak_dtype,
        images_per_second * flops_per_image / peak_flops,
    )
