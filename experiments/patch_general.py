"""How large should the patches of the general patch model be, and how wide the model?

    python -m experiments.patch_general

The model knows nothing of MNIST. Small patches give it more tokens, and attention a finer view;
large ones make steps cheaper. All are trained for equally long and without guidance built in. The
clock is the process's CPU time on one core, so that other work on the machine does not shorten a
training.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from experiments.common import Quality, results, run_cell, save_plot, start
from mnist_transformer.data import load_dataset
from mnist_transformer.recipes import RECIPES
from tools import trials

SIZES = {
    dim: {
        "dim": dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": 4 * dim,
        "gate_width": dim // 2,
        "head_width": dim // 2,
        "head_mlp_dim": dim,
    }
    for dim, depth, num_heads in ((96, 3, 3), (128, 4, 4), (192, 4, 4), (256, 5, 4))
}
FIGURES = ("validation bits/dim", "class agreement, %", "training images/s", "drawn images/s")


def main(
    data: Path | None = None,
    patch_sizes: tuple[int, ...] = (1, 2, 4),
    dims: tuple[int, ...] = tuple(SIZES),
    seeds: tuple[int, ...] = (0, 1, 2),
    max_seconds: float = 540.0,
    num_samples: int = 1000,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        dims: Widths of the transformer.
        max_seconds: CPU seconds that each model is trained.
        num_samples: Digits to draw from each.
    """
    torch.set_num_threads(1)
    dataset = load_dataset("mnist", data)
    quality = Quality(dataset, num_samples)

    recipe = RECIPES["mnist-patch"]
    for seed in seeds:
        for patch_size in patch_sizes:
            for dim in dims:
                if dim not in SIZES:
                    raise ValueError(f"dim is {dim}, expected one of {', '.join(map(str, SIZES))}")
                shape = {"patch_size": patch_size, "built_in_guidance": 1.0} | SIZES[dim]
                config = replace(recipe.model, **shape)
                run_cell(
                    "patch-general",
                    {"patch": patch_size, "dim": dim, "CPU seconds": max_seconds},
                    replace(recipe, name="trial", model=config, max_seconds=max_seconds),
                    dataset,
                    seed,
                    quality.drawn_and_speed,
                    clock=time.process_time,
                )
    save_plot(plot(), "patch-general")


def plot() -> Figure:
    """One panel per figure, by the width of the model; every seed is a dot."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    rows = results("patch-general")
    for axes, name in zip(figure.subplots(2, 2).flat, FIGURES, strict=True):
        for patch_size in sorted({row["metrics"]["settings"]["patch"] for row in rows}):
            same = [row for row in rows if row["metrics"]["settings"]["patch"] == patch_size]
            x = [row["metrics"]["settings"]["dim"] for row in same]
            axes.plot(x, trials.figures_of(same, name), "o", label=f"patch {patch_size}", alpha=0.7)
        axes.set(xlabel="dim", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


if __name__ == "__main__":
    start(main, __doc__)
