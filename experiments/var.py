"""How many scales, and are they better than raster order? One tokenizer and one model per cell.

    python -m experiments.var

Every cell is trained for equally long: first a tokenizer of these scales, with codebooks of one
size, then mnist-var's transformer over its codes. "7" draws all codes of the one scale at once,
given the class alone; "7 in raster order" draws the same codes one after another.

A second plot shows, from the log of the recipe mnist-vqvae, how its codes came into use.
"""

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common import (
    RUNS,
    Figures,
    Quality,
    dots,
    is_done,
    results,
    run_cell,
    save_plot,
    start,
)
from mnist_transformer.data import Dataset, load_dataset
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation.speed import sampling_speed
from mnist_transformer.models.base import in_batches
from mnist_transformer.models.var import Var
from mnist_transformer.models.vqvae import VQVAE, VQVAEConfig
from mnist_transformer.recipes import RECIPES
from mnist_transformer.training.log import read_metrics, training
from mnist_transformer.training.loop import train
from tools import trials

RASTER = "7 in raster order"
CELLS = (RASTER, "7", "1 7", "1 4 7", "1 2 4 7", "1 2 3 4 5 7")
FIGURES = (
    "squared error, 1e-3",
    "coded: fd_cnn",
    "class agreement, %",
    "fd_cnn",
    "training images/s",
    "drawn images/s",
)


def main(
    data: Path | None = None,
    cells: tuple[str, ...] = CELLS,
    seeds: tuple[int, ...] = (0,),
    tokenizer_seconds: float = 300.0,
    max_seconds: float = 900.0,
    num_samples: int = 5000,
    batch_size: int = 256,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plots.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        cells: Heights of the scales, or "7 in raster order".
        tokenizer_seconds: How long each tokenizer is trained.
        max_seconds: How long each model over its codes is trained.
        num_samples: Digits to draw from each.
        batch_size: Images drawn at once where the speed of drawing is measured.
    """
    dataset = load_dataset("mnist", data)
    quality = Quality(dataset, num_samples)

    def measure(model: Var, seed: int) -> Figures:
        return {
            **coded_figures(model.tokenizer, quality),
            **quality.drawn(model, seed),
            "drawn images/s": sampling_speed(model, batch_size),
        }

    for seed in seeds:
        for cell in cells:
            settings = {
                "scales": cell,
                "tokenizer seconds": tokenizer_seconds,
                "seconds": max_seconds,
            }
            if is_done("var", settings, seed):
                continue
            scales = (7,) if cell == RASTER else tuple(int(scale) for scale in cell.split())
            config = replace(RECIPES["mnist-vqvae"].model, scales=scales)
            order = "raster" if cell == RASTER else "scales"
            recipe = replace(
                RECIPES["mnist-var"],
                name="trial",
                model=replace(RECIPES["mnist-var"].model, tokenizer=config, order=order),
                tokenizer=str(train_tokenizer(config, dataset, seed, tokenizer_seconds)),
                max_seconds=max_seconds,
            )
            run_cell("var", settings, recipe, dataset, seed, measure, exact=None)
    save_plot(plot(), "var")
    save_plot(usage_plot(), "var/usage")


def train_tokenizer(config: VQVAEConfig, dataset: Dataset, seed: int, max_seconds: float) -> Path:
    """Train a tokenizer; the folder of its run, which several cells may share."""
    scales = " ".join(map(str, config.scales))
    name = trials.name_of("var", {"of": "tokenizer", "scales": scales, "s": max_seconds}, seed)
    recipe = replace(
        RECIPES["mnist-vqvae"], name="trial", model=config, max_seconds=max_seconds, epochs=None
    )
    with training(name) as report:
        return train(recipe, RUNS / name, data=dataset, seed=seed, report=report).parent


def coded_figures(tokenizer: VQVAE, quality: Quality) -> Figures:
    """The quality of the decoded test set, and the use of the codes."""
    test = quality.dataset.test
    coded = in_batches(tokenizer, tokenizer.reconstruct, test.images)
    errors = (coded - test.images).div(255).square()
    codes = tokenizer.figures(test.images, test.labels)
    usage = [value for name, value in codes.items() if name.startswith("usage_")]
    judged = quality.judged(coded.to(test.images.dtype), test.labels)
    return {
        "tokens": tokenizer.config.num_tokens,
        "squared error, 1e-3": 1e3 * errors.mean().item(),
        **{f"coded: {name}": value for name, value in judged.items()},
        "codes used at the worst scale, %": 100 * min(usage),
        "at the finest, %": 100 * usage[-1],
    }


def plot() -> Figure:
    groups = trials.by_settings(results("var"))
    names = [group[0]["metrics"]["settings"]["scales"] for group in groups]
    return dots(groups, names, FIGURES)


def usage_plot(recipe: str = "mnist-vqvae") -> Figure:
    """Codes used and perplexity at each validation of a tokenizer, one line per scale."""
    log = read_metrics(ledger.results_folder() / recipe / "log.jsonl")
    lines = [line for line in log if line["kind"] == "validation"]
    minutes = [line["seconds"] / 60 for line in lines]
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, kind, label in zip(
        figure.subplots(1, 2),
        ("usage_", "perplexity_"),
        ("codes used, share", "perplexity"),
        strict=True,
    ):
        for name in (name for name in (lines[-1] if lines else {}) if name.startswith(kind)):
            axes.plot(minutes, [x[name] for x in lines], label=name.removeprefix(kind))
        axes.set(xlabel=f"minutes of {recipe}", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        if lines:
            axes.legend(title="scale")
    return figure


if __name__ == "__main__":
    start(main, __doc__)
