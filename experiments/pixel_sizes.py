"""What does training take at the sizes of an earlier project? A few steps of each, timed.

    python -m experiments.pixel_sizes
    python -m experiments.pixel_sizes --device cuda --batch-size 128

The models are untrained, but each step is a full training step with the optimizer. The memory is
the most that a step adds to the weights: a copy of them, gradients, the optimizer's state, and
activations, which grow with the batch.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.common import Figures, is_done, peak_memory, record, start
from mnist_transformer.data import Split, load_dataset
from mnist_transformer.evaluation import speed as timing
from mnist_transformer.models.pixel import Pixel
from mnist_transformer.recipes import RECIPES, Recipe
from mnist_transformer.utils.devices import to_device
from mnist_transformer.utils.terminal import stages


def main(
    data: Path | None = None,
    names: tuple[str, ...] = ("mnist-pixel-3.5m", "mnist-pixel-6.9m", "mnist-pixel-57m"),
    batch_size: int = 4,
    num_steps: int = 3,
    draw_at_once: int = 16,
    device: str | None = None,
) -> None:
    """Measure what the ledger does not have yet.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        names: Recipes.
        batch_size: Images per step.
        num_steps: Steps to time, after a first one.
        draw_at_once: Digits to draw at once, to see how fast that is.
        device: Such as cpu, cuda or mps; otherwise the best available.
    """
    split = load_dataset("mnist", data).train
    for name in names:
        torch.manual_seed(0)
        model = to_device(RECIPES[name].model.build(), device)
        settings = {"model": name, "device": model.device.type, "batch": batch_size}
        if is_done("pixel-sizes", settings):
            continue
        figures = measure(model, RECIPES[name], split, batch_size, num_steps)
        figures[f"drawn images/s, {draw_at_once} at once"] = timing.sampling_speed(
            model.eval(), draw_at_once, repeats=1
        )
        record("pixel-sizes", settings, figures, model, exact=None)


def measure(model: Pixel, recipe: Recipe, split: Split, batch_size: int, num_steps: int) -> Figures:
    speed: dict[str, Any] = {}

    def train() -> None:
        few = replace(recipe, batch_size=batch_size)
        with stages() as report:
            speed.update(timing.throughput(model, few, split, num_steps=num_steps, report=report))

    memory = peak_memory(train, model.device)
    return {
        "training images/s": speed["images_per_second"],
        "hours an epoch": len(split) / speed["images_per_second"] / 3600,
        "seconds a step": batch_size / speed["images_per_second"],
        "memory of a step, GiB": None if memory is None else memory / 1024,
        "GFLOP an image": speed["flops_per_image"] / 1e9,
        "share of matmul peak, %": 100 * speed["share_of_peak"],
    }


if __name__ == "__main__":
    start(main, __doc__)
