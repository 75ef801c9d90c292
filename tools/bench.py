"""How fast drawing gets: models in several settings, raced in one run (the verb ``bench``).

A *subject* draws in one setting: plain (eager, with the key-value cache, in float32 unless it is
a model that draws in bfloat16 as it comes), compiled, in bfloat16, or the old way, without a
cache, where every pixel costs a pass over all before it.
Batches of several sizes show what batching brings. Where a drawing would take too long, a part
of it that costs as much as any other is timed, and the rest extrapolated; the setting says so.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count, islice
from pathlib import PurePath
from typing import NamedTuple

import torch
from torch._dynamo.exc import TorchDynamoException

from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.evaluation.speed import count_flops, matmul_peak, now
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.ddpm import DDPM
from mnist_transformer.models.loading import load, load_shipped, shipped
from mnist_transformer.models.mar import MAR
from mnist_transformer.models.pixel import Pixel
from mnist_transformer.networks.drawing import draw_categorical
from mnist_transformer.networks.transformer import Transformer
from mnist_transformer.options import Sampling
from mnist_transformer.recipes import RECIPES
from mnist_transformer.utils.devices import fast_autocast, fast_dtype, to_device
from mnist_transformer.utils.images import figure_png
from tools import trials

OLD_MODEL = "mnist-pixel-3.5m"
NUM_COUNTED = 10  # images whose operations are counted: one a class
MAX_DRAWINGS = 200
NUM_PASSES = 8  # timed of the old way's one a pixel
PLAIN, THE_OLD_WAY = "plain", "no cache"
BFLOAT16, COMPILED = "bfloat16", "compiled"

Draw = Callable[[int], object]
Tell = Callable[[str], None]


class Subject(NamedTuple):
    """Something that draws, in one setting.

    Attributes:
        draw: draws a batch of that many images, or ``share`` of the work of it.
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


def load_models(names: Sequence[str], device: str | None) -> dict[str, GenerativeModel]:
    """Models by name: the old way's first, with random weights where it is not shipped.

    Args:
        names: as ``load`` takes them; none stand for all models that are shipped and draw.

    Raises:
        ValueError: as in ``load``.
    """
    models = {PurePath(name).name: load(name, device) for name in names}
    if not names:
        models = load_shipped(device)
    if OLD_MODEL in shipped():
        old = {OLD_MODEL: models.get(OLD_MODEL) or load(OLD_MODEL, device)}
    else:
        untrained = to_device(RECIPES[OLD_MODEL].model.build(), device)
        old = {f"{OLD_MODEL} (random weights)": untrained}
    return old | models


def settings_of(name: str, model: GenerativeModel, tell: Tell) -> list[Subject]:
    """A model with one switch after the other turned on; ``tell`` hears which cannot be."""
    draw = _drawer(model)
    subjects = [Subject(name, PLAIN, model.num_parameters, draw, draw)]
    if isinstance(model, Pixel):
        subjects.insert(0, _full_passes(name, model))
    if fast_dtype(model.device) != torch.bfloat16:
        tell(f"{name} in bfloat16: not measured, {model.device} has no instructions for it")
    elif not isinstance(model, DDPM | MAR):  # which draw in it as they come
        rounded = _drawer(model, in_bfloat16=True)
        subjects.append(Subject(name, BFLOAT16, model.num_parameters, rounded, draw))
    compiled = copy.deepcopy(model)
    transformer = getattr(compiled, "transformer", None)
    if isinstance(transformer, Transformer):
        transformer.compile(dynamic=True)
        fast = _drawer(compiled)
        subjects.append(Subject(name, COMPILED, model.num_parameters, fast, draw, warm_up=True))
    return subjects


def _drawer(model: GenerativeModel, in_bfloat16: bool = False) -> Draw:
    """Draws other images at every call, all classes in turn."""
    seeds = count()

    def draw(num_images: int) -> None:
        mine = list(islice(seeds, num_images))
        with fast_autocast(model.device) if in_bfloat16 else nullcontext():
            model.sample([seed % model.num_classes for seed in mine], mine)

    return draw


def _full_passes(name: str, model: Pixel, num_passes: int = NUM_PASSES) -> Subject:
    """The old way: every pixel by a pass over the class and all pixels before it.

    Timed are passes of evenly spread lengths, each standing for those around it.
    """
    num_passes = min(num_passes, model.num_pixels)
    lengths = [1 + int((i + 0.5) * model.num_pixels / num_passes) for i in range(num_passes)]

    @torch.inference_mode()
    def draw(num_images: int) -> None:
        values = torch.randint(
            model.config.num_levels, (num_images, model.num_pixels), device=model.device
        )
        cond = torch.arange(num_images, device=model.device) % model.num_classes
        uniform = torch.rand(num_images, device=model.device)
        for length in lengths:
            logits = model.logits(values[:, :length], cond)
            draw_categorical(logits[:, -1], uniform, Sampling())

    return Subject(
        name,
        f"{THE_OLD_WAY}, {num_passes} of {model.num_pixels} passes timed",
        model.num_parameters,
        draw,
        draw,
        share=num_passes / model.num_pixels,
        largest_batch=16,
    )


def measure(
    subject: Subject, batch_size: int, device: torch.device, seconds: float
) -> dict[str, float]:
    """Seconds of a batch from request to image (percentiles), and images a second (the median).

    Drawings are repeated for about ``seconds``, two or more after one to warm up; one that
    takes longer than that by itself is the only one, with no warm-up unless it compiles.
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
    """Measure every subject at every batch size: a row for ``ledger.append`` each.

    Args:
        seconds: about how long each measurement takes.
        tell: hears what could not be measured, and why.
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
    """PNG of images/s by model: plain ones, the old way and peers, a dot a batch size."""
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
