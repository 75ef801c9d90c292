"""What does patching cost? Patches of 1, 2, 4 and 7 pixels, drawn pixel by pixel or all at once.

    python -m experiments.patching

The patch model is trained for equally long at every patch size, with its masked pixel head and
with that head blinded: there pixels of a patch are independent of one another, given the patches
before, as in a transformer that emits whole patches. Both likelihoods are exact.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common import Figures, Quality, results, run_cell, save_plot, start
from mnist_transformer.data import load_dataset
from mnist_transformer.evaluation.speed import sampling_speed
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.patch_law.model import Patch, PatchConfig
from mnist_transformer.recipes import RECIPES
from tools import trials

MASKED, INDEPENDENT = "one after another", "independent"
FIGURES = ("validation bits/dim", "fd_cnn", "training images/s", "drawn images/s")


@dataclass(frozen=True)
class BlindConfig(PatchConfig):
    """A patch model with independent pixels; only its buffers differ, which are not saved."""

    def build(self) -> Patch:
        model = super().build()
        blind(model)
        return model


def blind(model: Patch) -> None:
    """Let no pixel see its own patch: the windows' last row is zeros."""
    nothing = len(model.head.window)
    model.head.offset_index[model.head.num_before :] = nothing


def main(
    data: Path | None = None,
    patch_sizes: tuple[int, ...] = (1, 2, 4, 7),
    seeds: tuple[int, ...] = (0, 1, 2),
    max_seconds: float = 540.0,
    num_samples: int = 1000,
    batch_size: int = 64,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        max_seconds: How long each model is trained.
        num_samples: Digits to draw from each.
        batch_size: Images drawn at once where the speed of drawing is measured.
    """
    dataset = load_dataset("mnist", data)
    quality = Quality(dataset, num_samples)

    def measure(model: GenerativeModel, seed: int) -> Figures:
        return {
            **quality.drawn(model, seed),
            "drawn images/s": sampling_speed(model, batch_size),
        }

    flagship = RECIPES["mnist-patch-speedrun"]
    for seed in seeds:
        for patch_size in patch_sizes:
            for pixels in (MASKED, INDEPENDENT) if patch_size > 1 else (MASKED,):
                config = replace(flagship.model, patch_size=patch_size)
                if pixels == INDEPENDENT:
                    config = BlindConfig(**vars(config))
                run_cell(
                    "patching",
                    {"patch": patch_size, "pixels of a patch": pixels, "seconds": max_seconds},
                    replace(flagship, name="trial", model=config, max_seconds=max_seconds),
                    dataset,
                    seed,
                    measure,
                    change=blind if pixels == INDEPENDENT else lambda model: None,
                )
    save_plot(plot(), "patching")


def plot() -> Figure:
    """A panel a figure, by the size of the patch; every seed is a dot."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    groups = trials.by_settings(results("patching"))
    for axes, name in zip(figure.subplots(2, 2).flat, FIGURES, strict=True):
        for pixels, style in ((MASKED, "o"), (INDEPENDENT, "x")):
            points = [
                (group[0]["metrics"]["settings"]["patch"], value)
                for group in groups
                if group[0]["metrics"]["settings"]["pixels of a patch"] == pixels
                for value in trials.figures_of(group, name)
            ]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=pixels, alpha=0.7)
        axes.set(xlabel="patch size", ylabel=name)
        axes.grid(alpha=0.3)
        if groups:
            axes.legend()
        if "/s" in name:
            axes.set_yscale("log")
    return figure


if __name__ == "__main__":
    start(main, __doc__)
