"""Diffusion objectives compared: schedule, prediction and loss, trained for the same time.

    python -m experiments.diffusion

Every model has the size of mnist-ddpm and is trained for equally long; all draw with the same
number of Euler steps. The bound is that of ``Diffusion.bound``, on a part of the validation
set: each schedule bounds its own model, with its own lowest noise level.
"""

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common import Figures, Quality, dots, results, run_cell, save_plot, start
from mnist_transformer.data import load_dataset
from mnist_transformer.evaluation.metrics import bits_per_dim
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.recipes import RECIPES
from tools import trials

# schedule, prediction, loss_space, time_mean, patch_size; the first is mnist-ddpm's objective
OBJECTIVES: tuple[tuple[str, str, str, float | None, int], ...] = (
    ("flow", "x", "v", 0.8, 4),
    ("flow", "v", "v", 0.8, 4),
    ("flow", "epsilon", "v", 0.8, 4),
    ("flow", "x", "x", 0.8, 4),
    ("flow", "x", "v", 0.0, 4),
    ("flow", "x", "v", None, 4),
    ("cosine", "v", "v", None, 4),
    ("linear", "x", "epsilon", None, 4),
    ("linear", "epsilon", "epsilon", None, 4),
    ("flow", "x", "v", 0.8, 7),
    ("flow", "v", "v", 0.8, 7),
)
FIGURES = ("class agreement, %", "fd_cnn", "training images/s")
NUM_BOUND_IMAGES = 500


def main(
    data: Path | None = None,
    seeds: tuple[int, ...] = (0,),
    max_seconds: float = 540.0,
    num_samples: int = 2000,
    num_steps: int = 25,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        max_seconds: How long each model is trained.
        num_samples: Digits to draw from each.
        num_steps: Euler steps of a drawing.
    """
    dataset = load_dataset("mnist", data)
    quality = Quality(dataset, num_samples)
    part = dataset.val.part(0, NUM_BOUND_IMAGES)

    def measure(model: GenerativeModel, seed: int) -> Figures:
        return {
            **quality.drawn(model, seed),
            "validation bound, bits/dim": bits_per_dim(model, part),
        }

    recipe = RECIPES["mnist-ddpm"]
    for seed in seeds:
        for schedule, prediction, loss_space, time_mean, patch_size in OBJECTIVES:
            config = replace(
                recipe.model,
                schedule=schedule,
                prediction=prediction,
                loss_space=loss_space,
                time_mean=time_mean,
                patch_size=patch_size,
                num_steps=num_steps,
                built_in_guidance=1.0,
            )
            settings = {
                "schedule": schedule,
                "prediction": prediction,
                "loss in": loss_space,
                "t": "uniform" if time_mean is None else f"logit-normal around {time_mean:g}",
                "patch": patch_size,
                "seconds": max_seconds,
            }
            run_cell(
                "diffusion",
                settings,
                replace(recipe, name="trial", model=config, max_seconds=max_seconds),
                dataset,
                seed,
                measure,
                exact=False,
            )
    save_plot(plot(), "diffusion")


def plot() -> Figure:
    groups = trials.by_settings(results("diffusion"))
    names = [", ".join(map(str, group[0]["metrics"]["settings"].values())) for group in groups]
    return dots(groups, names, FIGURES)


if __name__ == "__main__":
    start(main, __doc__)
