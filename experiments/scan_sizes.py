"""How large should the patches, the head and the transformer of a model of scans be?

    python -m experiments.scan_sizes

Each size is trained for equally long and without guidance built in. The clock is the process's
CPU time on one core, so that other work on the machine does not shorten a training.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch

from experiments.common import Quality, dots, results, run_cell, save_plot, start
from mnist_transformer.data import load_dataset
from mnist_transformer.recipes import RECIPES
from mnist_transformer.utils.checks import check_choice

SMALL = {"head_width": 48, "head_depth": 2, "head_mlp_dim": 96}
SIZES = {
    "8x8, small head": SMALL,
    "8x8, large head": {"head_width": 96, "head_depth": 3, "head_mlp_dim": 192},
    "8x8, smallest head": {"head_width": 32, "head_depth": 1, "head_mlp_dim": 96},
    "8x8, margin 5": SMALL | {"margin": 5},
    "8x8, dim 128": SMALL | {"dim": 128, "mlp_dim": 512, "gate_width": 64},
    "4x4": SMALL | {"patch_size": 4},
    "11x11": SMALL | {"patch_size": 11},
}
FIGURES = ("validation bits/dim", "class agreement, %", "drawn images/s")


def main(
    data: Path | None = None,
    sizes: tuple[str, ...] = tuple(SIZES),
    seeds: tuple[int, ...] = (0,),
    max_seconds: float = 540.0,
    num_samples: int = 1000,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        sizes: Names of sizes, as the plot has them.
        max_seconds: CPU seconds that each model is trained.
        num_samples: Digits to draw from each.
    """
    torch.set_num_threads(1)
    dataset = load_dataset("mnist", data)
    quality = Quality(dataset, num_samples)

    recipe = RECIPES["mnist-scan"]
    for seed in seeds:
        for size in sizes:
            check_choice("size", size, SIZES)
            scan = replace(recipe.model.scan, built_in_guidance=1.0, **SIZES[size])
            model = replace(recipe.model, scan=scan)
            run_cell(
                "scan-sizes",
                {"size": size, "CPU seconds": max_seconds},
                replace(recipe, name="trial", model=model, max_seconds=max_seconds),
                dataset,
                seed,
                quality.drawn_and_speed,
                clock=time.process_time,
            )
    rows = results("scan-sizes")
    names = [name for name in SIZES if any(of(row) == name for row in rows)]
    groups = [[row for row in rows if of(row) == name] for name in names]
    save_plot(dots(groups, names, FIGURES), "scan-sizes")


def of(row: dict) -> str:
    """The name of a row's size."""
    return str(row["metrics"]["settings"]["size"])


if __name__ == "__main__":
    start(main, __doc__)
