"""What is the smallest model that keeps the quality? Patch models of 0.1M to 10M parameters.

    python -m experiments.smallest

All are trained for equally long; what is small makes more steps in that time. The plot shows
quality by size and by speed of drawing, with the sizes that no other one beats in both joined by
a line (the Pareto front), and a band for the flagship's own size.
"""

from dataclasses import replace
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from experiments.common import Figures, Quality, results, run_cell, save_plot, start
from mnist_transformer.data import load_dataset
from mnist_transformer.evaluation.speed import sampling_speed
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.patch_law.model import PatchConfig
from mnist_transformer.recipes import RECIPES
from tools import trials

# dim, depth, num_heads; head_width, head_depth
SIZES = (
    (32, 2, 2, 16, 2),
    (64, 2, 2, 32, 2),
    (96, 3, 3, 48, 3),
    (128, 4, 4, 64, 3),
    (192, 4, 4, 96, 3),
    (256, 5, 4, 128, 3),
    (320, 6, 5, 160, 3),
)
QUALITY = ("validation bits/dim", "class agreement, %")
SPEED = "drawn images/s at 256"


def make_config(flagship: PatchConfig, size: tuple[int, ...]) -> PatchConfig:
    """The flagship, narrower or wider throughout."""
    dim, depth, num_heads, head_width, head_depth = size
    return replace(
        flagship,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=4 * dim,
        gate_width=head_width,
        head_width=head_width,
        head_depth=head_depth,
        head_mlp_dim=2 * head_width,
    )


def main(
    data: Path | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    max_seconds: float = 540.0,
    num_samples: int = 2000,
    first: int = 0,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        max_seconds: How long each model is trained.
        num_samples: Digits to draw from each.
        first: Leave out that many of the smallest models.
    """
    dataset = load_dataset("mnist", data)
    quality = Quality(dataset, num_samples)

    def measure(model: GenerativeModel, seed: int) -> Figures:
        return {
            **quality.drawn(model, seed),
            "drawn images/s at 1": sampling_speed(model, 1),
            SPEED: sampling_speed(model, 256),
        }

    flagship = RECIPES["mnist-patch-speedrun"]
    for seed in seeds:
        for size in SIZES[first:]:
            config = make_config(flagship.model, size)
            settings = {
                "dim": config.dim,
                "depth": config.depth,
                "heads": config.num_heads,
                "head width": config.head_width,
                "seconds": max_seconds,
            }
            run_cell(
                "smallest",
                settings,
                replace(flagship, name="trial", model=config, max_seconds=max_seconds),
                dataset,
                seed,
                measure,
            )
    save_plot(plot(), "smallest")


def plot() -> Figure:
    """Quality by parameters and by speed: a dot a seed, the Pareto front, the flagship's band."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    groups = trials.by_settings(results("smallest"))
    flagship = RECIPES["mnist-patch-speedrun"].model.dim
    for axes_row, name in zip(figure.subplots(2, 2), QUALITY, strict=True):
        less_is_better = name == QUALITY[0]
        for axes, across in zip(axes_row, ("parameters", SPEED), strict=True):
            means = []
            for group in groups:
                values = trials.figures_of(group, name)
                places = [row["parameters"] for row in group]
                if across == SPEED:
                    places = trials.figures_of(group, SPEED)
                axes.plot(places, values, "o", color="tab:blue", alpha=0.5)
                means.append((mean(places), mean(values)))
                axes.annotate(f"{group[0]['parameters'] / 1e6:.2g}M", means[-1])
                if group[0]["metrics"]["settings"]["dim"] == flagship:
                    axes.axhspan(min(values), max(values), color="grey", alpha=0.2)
            front = pareto(means, small_place=across != SPEED, small_value=less_is_better)
            axes.plot([x for x, _ in front], [y for _, y in front], color="tab:blue")
            axes.set(xscale="log", xlabel=across, ylabel=name)
            axes.grid(alpha=0.3)
    return figure


def pareto(
    points: list[tuple[float, float]], *, small_place: bool, small_value: bool
) -> list[tuple[float, float]]:
    """The points (place, value) that no other one beats in both, best places first."""
    front: list[tuple[float, float]] = []
    for place, value in sorted(points, reverse=not small_place):
        if not front or (value < front[-1][1] if small_value else value > front[-1][1]):
            front.append((place, value))
    return front


if __name__ == "__main__":
    start(main, __doc__)
