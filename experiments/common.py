"""Shared by the experiments: cells that are trained once, figures of drawn digits, plots.

An experiment is run as ``python -m experiments.NAME`` in the source tree. A cell is one
combination of settings and one seed. It is skipped if the ledger has its row, and resumed if its
training was interrupted. So running the same command again finishes the rest.
"""

import ctypes
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.data import Dataset, Split
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation import protocol as evaluate
from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.evaluation.metrics import bits_per_dim, class_agreement, fd_cnn
from mnist_transformer.evaluation.speed import sampling_speed
from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import GenerativeModel, Model, in_batches
from mnist_transformer.models.loading import find_weights
from mnist_transformer.options import PLAIN, Sampling
from mnist_transformer.recipes import Recipe
from mnist_transformer.training.info import read_info
from mnist_transformer.training.log import training
from mnist_transformer.training.loop import train
from mnist_transformer.utils.devices import to_device
from mnist_transformer.utils.files import write_atomic
from mnist_transformer.utils.images import enlarge, figure_png, grid, save_png
from mnist_transformer.utils.terminal import exit_code, stages
from tools import trials

RUNS = Path("runs/trials")
MIB = 2**20
Figures = dict[str, float | None]


def start(main: Callable[..., None], description: str | None) -> None:
    """Run an experiment as its command line asks, and exit as the project's own verbs do."""
    program = Path(sys.argv[0]).stem
    sys.exit(exit_code(program, lambda: tyro.cli(main, description=description)))


def results(experiment: str) -> list[Row]:
    """The latest row of each cell."""
    return trials.of(experiment, ledger.latest(ledger.results_folder() / "ledger.jsonl"))


def model_name(name_or_path: str) -> str:
    """A model's name in the ledger: the recipe of its weights, wherever they are."""
    return read_info(find_weights(name_or_path)).recipe


def is_done(
    experiment: str,
    settings: trials.Settings,
    seed: int | None = None,
    *,
    dataset: str | None = None,
    again: bool = False,
) -> bool:
    """Whether the ledger has this cell, for that data set if one is named.

    Always false with ``again``: the cell is to be measured again.
    """
    name = trials.name_of(experiment, settings, seed)
    rows = [] if again else ledger.rows(ledger.results_folder() / "ledger.jsonl")
    return any(row["recipe"] == name and dataset in (None, row["dataset"]) for row in rows)


def record(
    experiment: str,
    settings: trials.Settings,
    figures: Figures,
    model: Model | None = None,
    seed: int | None = None,
    **details: Any,
) -> None:
    """Append the figures to the ledger, and print them.

    Args:
        model: gives the row's parameters, device and data set.
        details: further arguments of ``trials.make_row``, which override what the model gives.
    """
    if model is not None:
        told = {"parameters": model.num_parameters, "device": str(model.device)}
        details = told | {"dataset": model.config.data.name} | details
    typed = ["python", "-m", f"experiments.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
    command = ledger.clean_command(typed)
    row = trials.make_row(experiment, settings, figures, seed, command=command, **details)
    ledger.append(row)
    print(row["recipe"], *(f"{k} {v}" for k, v in figures.items()), sep=" · ")


def half_size(dataset: Dataset) -> Dataset:
    """Digits of half the height and width: means of 2x2 pixels, rounded."""

    def halve(split: Split) -> Split:
        means = F.avg_pool2d(split.images.float(), 2).round()
        return Split(means.to(torch.uint8), split.labels)

    channels, height, width = dataset.spec.shape
    spec = replace(dataset.spec, shape=(channels, height // 2, width // 2))
    return replace(dataset.map(lambda name, split: halve(split)), spec=spec)


def run_cell(
    experiment: str,
    settings: trials.Settings,
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    measure: Callable[[Any, int], Figures],
    *,
    change: Callable[[Any], None] = lambda model: None,
    trained_as: trials.Settings | None = None,
    exact: bool | None = True,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train a cell's model, measure it and record the row, unless it was done before.

    Args:
        measure: gives figures of the trained model, drawing with the seed. They are added to its
            training images/s and, if the likelihood is exact, to the validation bits/dim at
            the end of training, which a figure of the same name replaces.
        change: made to the trained model before it is measured, as a checkpoint holds weights
            and no code.
        trained_as: the settings of the cell whose training this one shares, if any.
        clock: of training, see ``train``.
    """
    if is_done(experiment, settings, seed):
        return
    name = trials.name_of(experiment, trained_as or settings, seed)
    with training(name) as report:
        weights = train(recipe, RUNS / name, data=dataset, seed=seed, report=report, clock=clock)
    model = to_device(checkpoint.load(weights))
    change(model)
    trained = read_info(weights)
    assert trained.images_seen is not None
    assert trained.seconds is not None
    figures: Figures = {"training images/s": trained.images_seen / max(trained.seconds, 0.01)}
    if exact:
        figures["validation bits/dim"] = trained.validation_bits_per_dim
    figures |= measure(model, seed)
    record(
        experiment,
        settings,
        figures,
        model,
        seed,
        exact=None if exact is None else model.likelihood == "exact",
        images_seen=trained.images_seen,
        seconds=trained.seconds,
    )


def peak_memory(work: Callable[[], object], device: torch.device) -> float | None:
    """Peak MiB that ``work`` adds to what was in use before; None where it cannot be measured."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    if sys.platform != "linux":
        return None
    # Freed memory must go back to the system, or its reuse would not be counted.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _resident("VmRSS")
    work()
    return max(0.0, _resident("VmHWM") - before)


def _resident(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found.group(1)) / 1024


class Quality:
    """Figures of a model against one dataset, by the project's own judge.

    Bits/dim are of the validation set, since experiments choose by them; test bits/dim are for
    what was chosen. Images smaller than the judge's are enlarged for it, and so are the real
    ones that they are compared with.
    """

    def __init__(self, dataset: Dataset, num_samples: int) -> None:
        self.dataset, self.num_samples = dataset, num_samples
        self.judge = evaluate.load_judge(dataset.spec)
        self.reference = self.features(dataset.test.spaced(num_samples).images)

    def bits(self, model: GenerativeModel) -> Figures:
        """Bits/dim of the validation set, given the class."""
        with stages() as report:
            bits = bits_per_dim(model, self.dataset.val, report=report, stage="validation")
        return {"validation bits/dim": bits}

    def draw(
        self, model: GenerativeModel, seed: int, how: Sampling = PLAIN
    ) -> tuple[Tensor, Tensor]:
        """Class-balanced images uint8 (N, C, H, W), and their labels (N,)."""
        with stages() as report:
            return evaluate.draw_balanced(model, self.num_samples, seed, how, report=report)

    def drawn(self, model: GenerativeModel, seed: int, how: Sampling = PLAIN) -> Figures:
        """Class agreement and fd_cnn of images that the model draws."""
        return self.judged(*self.draw(model, seed, how))

    def drawn_and_speed(self, model: GenerativeModel, seed: int) -> Figures:
        """``drawn``, and the images that the model draws per second in batches of 64."""
        return self.drawn(model, seed) | {"drawn images/s": sampling_speed(model, 64)}

    def judged(self, images: Tensor, labels: Tensor) -> Figures:
        """Class agreement and fd_cnn of drawn or real images."""
        features = self.features(images)
        return {
            "class agreement, %": 100 * class_agreement(features, labels, self.judge),
            "fd_cnn": fd_cnn(self.reference, features),
        }

    def features(self, images: Tensor) -> Tensor:
        return in_batches(self.judge, self.judge.features, self._enlarged(images))

    def _enlarged(self, images: Tensor) -> Tensor:
        size = self.judge.config.image_size
        if images.shape[-1] == size:
            return images
        large = F.interpolate(images.float(), (size, size), mode="bilinear")
        return large.round().to(torch.uint8)


def dots(
    groups: Sequence[list[Row]],
    names: Sequence[str],
    figures: Sequence[str],
    references: Mapping[str, Row] = {},
) -> Figure:
    """One panel per figure, one row per group of cells that differ in their seed, one dot per seed.

    Args:
        figures: their names, three for each row of panels.
        references: rows whose figures are dashed lines, by what to call them.
    """
    num_lines = len(figures) // 3
    size = (12, num_lines * (1 + max(4, len(groups)) / 4))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_lines, 3, sharey=True, squeeze=False)
    for axes, name in zip(panels.flat, figures, strict=True):
        for row, group in enumerate(groups):
            values = trials.figures_of(group, name)
            axes.plot(values, [-row] * len(values), "o", color="tab:blue", alpha=0.7)
        for label, reference in references.items():
            for value in trials.figures_of([reference], name):
                axes.axvline(value, color="black", linestyle="--", label=label)
                axes.legend()
        axes.set(xlabel=name, yticks=[-row for row in range(len(groups))], yticklabels=names)
        axes.grid(alpha=0.3)
    return figure


def save_plot(figure: Figure, experiment: str) -> None:
    """Write results/<experiment>/plot.png."""
    save_figure(figure, ledger.results_folder() / experiment / "plot.png")


def save_images(images: Tensor, columns: int, path: Path) -> None:
    """Write a PNG file of images uint8 (B, C, H, W), row by row, twice as large."""
    save_png(enlarge(grid(images, columns, gap=2), 2), path)
    print(f"saved {path}")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file."""
    write_atomic(path, figure_png(figure))
    print(f"saved {path}")
