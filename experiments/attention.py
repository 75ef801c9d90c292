"""How fast is attention, and how much memory does it take? Fused kernel against definition.

    python -m experiments.attention

Causal attention of the pixel model's heads at several lengths, in batches of about equally many
tokens: seconds of the forward pass and of forward and backward, and the memory that they add at
their peak. On a CPU that is the process's resident memory, as Linux reports it. bfloat16 is
measured where the hardware has it. tests/test_old_faults.py checks both kernels.

Shapes: B batch, N heads, T tokens, K head_dim.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from experiments.common import is_done, peak_memory, record, results, save_plot, start
from mnist_transformer.evaluation.speed import timed
from mnist_transformer.networks.attention import attend
from mnist_transformer.utils.devices import fast_dtype

KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "SDPA": partial(F.scaled_dot_product_attention, is_causal=True),
    "plain": partial(attend, causal=True, plain=True),
}
PASSES = ("forward", "forward and backward")


def main(
    tokens: tuple[int, ...] = (49, 196, 785, 3072),
    num_heads: int = 4,
    head_dim: int = 64,
    tokens_a_batch: int = 12_288,
    seconds: float = 2.0,
    device: str = "cpu",
) -> None:
    """Measure what the ledger does not have yet, then draw the plot.

    Args:
        tokens: Lengths of the sequences.
        tokens_a_batch: About how many tokens to attend at once, over all sequences.
        seconds: About how long to repeat each measurement.
        device: cpu or cuda.
    """
    place = torch.device(device)
    dtypes = [torch.float32]
    if fast_dtype(place) == torch.bfloat16:
        dtypes.append(torch.bfloat16)
    else:
        print(f"bfloat16: not measured, {device} has no instructions for it")
    for num_tokens in tokens:
        shape = (max(1, tokens_a_batch // num_tokens), num_heads, num_tokens, head_dim)
        for dtype in dtypes:
            for kernel in KERNELS:
                for passes in PASSES:
                    settings = {
                        "device": place.type,
                        "tokens": num_tokens,
                        "batch": shape[0],
                        "dtype": str(dtype).removeprefix("torch."),
                        "kernel": kernel,
                        "pass": passes,
                    }
                    if is_done("attention", settings):
                        continue
                    work = make_work(kernel, shape, dtype, place, backward=passes != PASSES[0])
                    figures = {
                        "ms": 1000 * duration(work, place, seconds),
                        "peak MiB": peak_memory(work, place),
                    }
                    record("attention", settings, figures, device=device)
    save_plot(plot(), "attention")


def make_work(
    kernel: str,
    shape_BNTK: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    backward: bool,
) -> Callable[[], object]:
    """A function that attends once: as drawing does, or with gradients as training does."""
    q, k, v = (
        torch.randn(shape_BNTK, device=device).to(dtype).requires_grad_(backward) for _ in range(3)
    )
    gradient = torch.randn_like(v)

    def work() -> object:
        output = KERNELS[kernel](q, k, v)
        return torch.autograd.grad(output, (q, k, v), gradient) if backward else output

    return work


def duration(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of the calls that fit into ``seconds``, at least three, after a warm-up."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - started < seconds:
        times.append(timed(device, work))
    return median(times[1:])


def plot() -> Figure:
    """Time and memory per sequence by its length, one line per kernel and dtype."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for row, passes in enumerate(PASSES):
        for column, (name, label) in enumerate(
            (("ms", "ms per sequence"), ("peak MiB", "MiB per sequence"))
        ):
            axes = panels[row, column]
            lines: dict[str, list[tuple[int, float]]] = {}
            for found in (r["metrics"] for r in results("attention")):
                settings, value = found["settings"], found["figures"][name]
                if settings["pass"] == passes and value:
                    line = "{kernel}, {dtype}, {device}".format(**settings)
                    point = (settings["tokens"], value / settings["batch"])
                    lines.setdefault(line, []).append(point)
            for line, points in lines.items():
                axes.loglog(*zip(*sorted(points), strict=True), "o-", label=line)
            axes.set(title=passes, xlabel="tokens", ylabel=label)
            axes.grid(alpha=0.3)
            if lines:
                axes.legend()
    return figure


if __name__ == "__main__":
    start(main, __doc__)
