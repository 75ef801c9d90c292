"""A race of subjects: how long each takes to draw batches of several sizes.

A subject is something that draws, in one setting. A row of the ledger is one subject at one batch
size, compared with its plain setting and the old way, pixel by pixel without a cache.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch._dynamo.exc import TorchDynamoException

from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.evaluation.speed import count_flops, matmul_peak, now
from mnist_transformer.utils.images import figure_png
from tools import trials

NUM_COUNTED = 10  # images whose operations are counted: one per class
MAX_DRAWINGS = 200
PLAIN, THE_OLD_WAY = "plain", "no cache"
BFLOAT16, COMPILED = "bfloat16", "compiled"

Draw = Callable[[int], object]
Tell = Callable[[str], None]


class Subject(NamedTuple):
    """Something that draws, in one setting.

    Attributes:
        draw: draws a batch of that many images, or ``share`` of that work.
        plain: a function like ``draw`` whose operations are counted in its place, as they
            are hidden in compiled code.
        share: in (0, 1]; each further share of a drawing costs as much.
        largest_batch: the most images that it is asked to draw at once.
        warm_up: drop the first drawing however long it takes, as it compiles.
    """

    model: str
    setting: str
    parameters: int
    draw: Draw
    plain: Draw
    share: float = 1.0
    largest_batch: int = 2**20
    warm_up: bool = False


def measure(
    subject: Subject, batch_size: int, device: torch.device, seconds: float
) -> dict[str, float]:
    """Seconds of a batch from request to image (percentiles), and images per second (the median).

    Drawings are repeated for about ``seconds``, two or more after one to warm up. A drawing that
    takes longer than ``seconds`` is the only one, with no warm-up unless it compiles.
    """
    times: list[float] = []
    num_least = 2 if subject.warm_up else 1
    started = now(device)
    while len(times) < 3 or (now(device) - started < seconds and len(times) < MAX_DRAWINGS):
        start = now(device)
        subject.draw(batch_size)
        times.append(now(device) - start)
        if len(times) == num_least and times[-1] > seconds:
            break
    latency = torch.tensor(times[1:] or times, dtype=torch.float64) / subject.share
    p50, p90, p99 = latency.quantile(torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)).tolist()
    return {
        "images/s": batch_size / p50,
        "p50, s": p50,
        "p90, s": p90,
        "p99, s": p99,
        "drawings": len(latency),
    }


def race(
    subjects: Iterable[Subject],
    batch_sizes: Sequence[int],
    device: torch.device,
    *,
    seconds: float = 10.0,
    command: str = "",
    tell: Tell,
) -> Iterator[Row]:
    """Measure every subject at every batch size; yield a row for ``ledger.append`` for each.

    Args:
        seconds: about how long each measurement takes.
        tell: called with what could not be measured, and why.
    """
    peak_flops, _ = matmul_peak(device)
    counted: dict[Draw, float] = {}
    old: float | None = None
    plain: dict[tuple[str, int], float] = {}
    for subject in subjects:
        for batch_size in batch_sizes:
            if batch_size > subject.largest_batch:
                continue
            try:
                figures: dict[str, float | None] = {**measure(subject, batch_size, device, seconds)}
            except TorchDynamoException as error:
                reason = str(error).strip().splitlines()[0]
                tell(f"{subject.model}, {subject.setting}: not measured, {reason}")
                break
            if subject.plain not in counted:
                num_counted = min(NUM_COUNTED, subject.largest_batch)
                flops = count_flops(partial(subject.plain, num_counted))
                counted[subject.plain] = flops / num_counted / subject.share
            flops_per_image = counted[subject.plain]
            rate = figures["images/s"]
            assert rate is not None
            if batch_size == 1 and old is None and subject.setting.startswith(THE_OLD_WAY):
                old = rate
            if subject.setting == PLAIN:
                plain[subject.model, batch_size] = rate
            before = plain.get((subject.model, batch_size))
            figures["times plain"] = rate / before if before else None
            figures["times the old way, one at a time"] = rate / old if old else None
            if device.type == "cpu":
                figures["core-seconds per 10,000 images"] = 10_000 * torch.get_num_threads() / rate
            figures["GFLOP an image"] = flops_per_image / 1e9
            figures["share of matmul peak, %"] = 100 * rate * flops_per_image / peak_flops
            yield trials.make_row(
                "bench",
                {"model": subject.model, "setting": subject.setting, "batch": batch_size},
                figures,
                parameters=subject.parameters,
                device=str(device),
                command=command,
            )


def plot(rows: Iterable[Row]) -> bytes:
    """PNG of images/s by model, with a dot per batch size: plain models, the old way and peers."""
    from matplotlib.figure import Figure

    rates: dict[str, dict[int, float]] = {}
    for row in rows:
        settings, figures = row["metrics"]["settings"], row["metrics"]["figures"]
        name, setting = settings["model"], settings["setting"].split(",")[0]
        if setting not in (BFLOAT16, COMPILED):
            name = name if setting == PLAIN else f"{name}, {setting}"
            rates.setdefault(name, {})[settings["batch"]] = figures["images/s"]
    names = sorted(rates, key=lambda name: max(rates[name].values()))
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for batch in sorted({batch for found in rates.values() for batch in found}):
        points = [(found[batch], names.index(n)) for n, found in rates.items() if batch in found]
        axes.plot(*zip(*points, strict=True), "o", alpha=0.8, label=f"{batch} at once")
    axes.set(xscale="log", xlabel="drawn images/s", yticks=range(len(names)), yticklabels=names)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure_png(figure)
