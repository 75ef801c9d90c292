"""Which positional encoding is best, and did the old RoPE slant the digits?

    python -m experiments.positions
    python -m experiments.positions --size 28 --schemes learned learned_axial_rope --seeds 0

A small pixel model is trained on digits of 14x14 pixels with dropout, once per scheme and seed,
on equally many images. An earlier project's RoPE on the head axis rotates all tokens alike, so a
model trained with it equals one without positions (tests/test_old_faults.py). So the model without
positions draws, with the old RoPE put in. The old models also kept attention dropout active as they
drew; "learned" and the old RoPE are measured that way as well, to tell the two faults apart.
(With the cache, a token's dropout is drawn once; the old models drew it again in every pass.)

Slant is the shear angle of the ink's second moments, positive where a digit leans to the right:
atan(-mu_xy / mu_yy), with y pointing down. It is compared with that of real digits.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.common import (
    Figures,
    Quality,
    dots,
    half_size,
    is_done,
    record,
    results,
    run_cell,
    save_images,
    save_plot,
    start,
)
from experiments.old_faults import keep_dropout_alive, turn_heads
from mnist_transformer.data import load_dataset
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation.protocol import balanced_subset
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.pixel import PixelConfig
from mnist_transformer.recipes import RECIPES
from tools import trials

OLD = "rope on the head axis"
SCHEMES = ("none", "learned", "sinusoidal", "rope", "axial_rope", "learned_axial_rope", OLD)
REAL = "(real digits)"
HALF = replace(MNIST, shape=(1, 14, 14))
SMALL = PixelConfig(
    HALF,
    dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    dropout=0.1,
    class_drop=0.0,
)
NUM_SHOWN = 20
FIGURES = (
    "validation bits/dim",
    "class agreement, %",
    "fd_cnn",
    "slant, degrees",
    "sd of slant, degrees",
    "training images/s",
)


def main(
    data: Path | None = None,
    size: int = 14,
    schemes: tuple[str, ...] = SCHEMES,
    seeds: tuple[int, ...] = (0, 1, 2),
    epochs: float = 0.5,
    num_samples: int = 1000,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        size: Height of the digits, 14 or 28; at 28 the model is mnist-pixel-3.5m.
        epochs: How long each model is trained.
        num_samples: Digits to draw from each.
    """
    if size not in (14, 28):
        raise ValueError(f"size is {size}, expected 14 or 28")
    dataset = load_dataset("mnist", data)
    pixel = RECIPES["mnist-pixel-3.5m"]
    config = pixel.model
    if size == 14:
        dataset, config = half_size(dataset), SMALL
    quality = Quality(dataset, num_samples)

    def measure(model: GenerativeModel, seed: int, scheme: str, dropout: str) -> Figures:
        faulty = scheme == OLD or dropout == "on"
        bits = quality.bits(model) if faulty else {}
        images, labels = quality.draw(model, seed)
        show(images, size, scheme, dropout)
        return bits | quality.judged(images, labels) | slant_figures(images)

    settings = {"size": size, "positions": REAL, "dropout when drawing": "off", "epochs": epochs}
    if not is_done("positions", settings):
        # As many per class as are drawn, since slant depends on the class.
        images, labels = balanced_subset(dataset.train, num_samples, 0)
        figures = quality.judged(images, labels) | slant_figures(images)
        record("positions", settings, figures)
    for seed in seeds:
        for scheme in schemes:
            trained = "none" if scheme == OLD else scheme
            model = replace(config, positions=trained)
            with_faults = config.dropout > 0 and scheme in ("learned", OLD)
            for dropout in ("off", "on") if with_faults else ("off",):
                run_cell(
                    "positions",
                    settings | {"positions": scheme, "dropout when drawing": dropout},
                    replace(pixel, name="trial", model=model, epochs=epochs),
                    dataset,
                    seed,
                    partial(measure, scheme=scheme, dropout=dropout),
                    change=faults(scheme == OLD, dropout == "on"),
                    trained_as=settings | {"positions": trained},
                    exact=True if dropout == "off" else None,
                )
    save_plot(plot(size), folder_of(size))


def show(images: Tensor, size: int, scheme: str, dropout: str) -> None:
    """Write the first digits drawn with a scheme: results/positions/<scheme>.png."""
    name = (scheme if dropout == "off" else f"{scheme} with dropout").replace(" ", "-")
    path = ledger.results_folder() / folder_of(size) / f"{name}.png"
    save_images(images[:NUM_SHOWN], NUM_SHOWN, path)


def folder_of(size: int) -> str:
    """Where in results/ the pictures of this size are."""
    return "positions" if size == 14 else f"positions/{size}"


def faults(old_rope: bool, alive: bool) -> Callable[[GenerativeModel], None]:
    """The faults that a loaded model is measured with."""

    def change(model: GenerativeModel) -> None:
        if old_rope:
            turn_heads(model.transformer)
        if alive:
            torch.manual_seed(0)
            keep_dropout_alive(model.transformer)

    return change


def slant(images: Tensor) -> Tensor:
    """Shear angles in degrees, float64, of the uint8 images (N, 1, H, W) that have one.

    An image without ink, or with ink in a single row, is left out.
    """
    ink = images[:, 0].double()
    height, width = ink.shape[1:]
    y = torch.arange(height, dtype=torch.float64)[None, :, None]
    x = torch.arange(width, dtype=torch.float64)[None, None, :]
    mass = ink.sum((1, 2), keepdim=True).clamp_min(1)
    dy = y - (ink * y).sum((1, 2), keepdim=True) / mass
    dx = x - (ink * x).sum((1, 2), keepdim=True) / mass
    mu_xy, mu_yy = (ink * dx * dy).sum((1, 2)), (ink * dy * dy).sum((1, 2))
    angles = torch.atan2(-mu_xy, mu_yy) * 180 / math.pi
    return angles[mu_yy > 0]


def slant_figures(images: Tensor) -> Figures:
    angles = slant(images)
    return {
        "slant, degrees": angles.mean().item(),
        "sd of slant, degrees": angles.std().item(),
    }


def plot(size: int) -> Figure:
    rows = [r for r in results("positions") if r["metrics"]["settings"]["size"] == size]
    groups = trials.by_settings(r for r in rows if r["metrics"]["seed"] is not None)
    names = []
    for group in groups:
        settings = group[0]["metrics"]["settings"]
        alive = ", dropout on" if settings["dropout when drawing"] == "on" else ""
        names.append(f"{settings['positions']}{alive}, {settings['epochs']:g} epochs")
    real = next(r for r in rows if r["metrics"]["settings"]["positions"] == REAL)
    return dots(groups, names, FIGURES, {"real digits": real})


if __name__ == "__main__":
    start(main, __doc__)
