"""What makes a masked autoregressive model learn? One change at a time, equally long.

    python -m experiments.mar

The first cell is mnist-mar's own config; each other one differs in a few fields. All are trained
for equally long, so a smaller model takes more steps in that time. The number of steps of the head
is set when drawing: experiments.diffusion_steps --models mnist-mar --head-steps 2 5 25.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.common import Figures, Quality, dots, results, run_cell, save_plot, start
from mnist_transformer.data import load_dataset
from mnist_transformer.evaluation.speed import sampling_speed
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.options import Sampling
from mnist_transformer.recipes import RECIPES
from tools import trials

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"head_depth": 1},
    {"head_width": 384, "head_mlp_dim": 512},
    {"num_draws": 1},
    {"schedule": "cosine", "prediction": "epsilon", "loss_space": "epsilon", "time_mean": None},
    {"min_mask_ratio": 0.7},
    {"margin": 0},
    {"blank_gate": False},
)
FIGURES = (
    "class agreement, %",
    "fd_cnn",
    "training images/s",
    "guided: class agreement, %",
    "guided: fd_cnn",
    "drawn images/s",
)


def main(
    data: Path | None = None,
    seeds: tuple[int, ...] = (0,),
    max_seconds: float = 540.0,
    num_samples: int = 2000,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        max_seconds: How long each model is trained.
        num_samples: Digits to draw from each.
    """
    dataset = load_dataset("mnist", data)
    quality = Quality(dataset, num_samples)

    def measure(model: GenerativeModel, seed: int) -> Figures:
        guided = quality.drawn(model, seed, Sampling(guidance=2.0))
        return {
            **quality.drawn(model, seed),
            **{f"guided: {name}": value for name, value in guided.items()},
            "drawn images/s": sampling_speed(model, 256, repeats=1),
        }

    recipe = RECIPES["mnist-mar"]
    for seed in seeds:
        for change in CHANGES:
            model = replace(recipe.model, **change)
            run_cell(
                "mar",
                settings_of(recipe.model, change, max_seconds),
                replace(recipe, name="trial", model=model, max_seconds=max_seconds),
                dataset,
                seed,
                measure,
                exact=None,
            )
    save_plot(plot(), "mar")


def settings_of(
    config: Any, change: dict[str, Any], seconds: float
) -> dict[str, str | int | float]:
    """The changes of a cell in words, with the values that it changes from."""
    before = asdict(config)
    words = [f"{name} {value} (from {before[name]})" for name, value in change.items()]
    return {"change": ", ".join(words) or "none", "seconds": seconds}


def plot() -> Figure:
    groups = trials.by_settings(results("mar"))
    names = [group[0]["metrics"]["settings"]["change"] for group in groups]
    return dots(groups, names, FIGURES)


if __name__ == "__main__":
    start(main, __doc__)
