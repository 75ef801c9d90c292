"""Do more drawn digits help, and do better ones? Models are trained on digits of another model.

    mnist-transformer synth --model mnist-scan-tiny --out runs/synth
    python -m experiments.synthetic runs/synth

All arms see equally many training images. For each score, the best and the worst half of the drawn
images are compared with a random half. Validation and test images are real. In the chain, each
generator is trained on digits that the previous one drew, which replace the data or are added to
it (arXiv 2404.01413).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from tyro.conf import Positional

from experiments.common import RUNS, Figures, Quality, results, run_cell, save_plot, start
from mnist_transformer.commands.synth import synth
from mnist_transformer.data import Dataset, Split, load_dataset
from mnist_transformer.evaluation import protocol, synthetic
from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.evaluation.metrics import bits_per_dim, precision_recall
from mnist_transformer.evaluation.synthetic import Columns
from mnist_transformer.recipes import RECIPES, Recipe, find_recipe
from mnist_transformer.utils.checks import check_choice
from mnist_transformer.utils.terminal import stages
from tools import trials

PARTS = ("classifier", "generator", "chain")
WAYS = ("replaced", "added")
GENERATIONS = 3
SETS = Path("runs/synthetic")


def main(
    folder: Positional[Path],
    data: Path | None = None,
    parts: tuple[str, ...] = PARTS,
    arms: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    generator: str = "mnist-ddpm",
    classifier_images: int = 550_000,
    generator_images: int = 240_000,
    num_samples: int = 10_000,
) -> None:
    """Train and measure what the ledger does not have yet, then draw the plot.

    Args:
        folder: The set that `mnist-transformer synth` drew.
        data: The folder with MNIST's four files; otherwise MNIST comes with the package.
        parts: Parts of the experiment: classifier, generator and chain.
        arms: Training sets, as the tables name them; otherwise all.
        generator: The recipe of the second generator.
        classifier_images: Training images that each classifier sees.
        generator_images: Training images that each generator sees.
        num_samples: Digits to draw from each generator.
    """
    for part in parts:
        check_choice("part", part, PARTS)
    dataset, drawn = load_dataset("mnist", data), synthetic.load(folder)
    choices = make_arms(dataset.train, drawn)
    for arm in arms:
        check_choice("arm", arm, choices)
    bench = Bench(dataset, generator, generator_images, num_samples)
    for seed in seeds:
        for arm in arms or choices:
            if "classifier" in parts:
                train_classifier(dataset, arm, choices[arm](seed), seed, classifier_images)
            if "generator" in parts:
                bench.train("generator", {"trained on": arm}, choices[arm](seed), seed)
        if "chain" in parts:
            run_chain(bench, seed, data)
    for name in ("classifier", "generator"):
        say_differences(results(f"synthetic-{name}"))
    save_plot(plot(), "synthetic")


def make_arms(real: Split, drawn: Columns) -> dict[str, Callable[[int], Split]]:
    """Training sets by name: functions of the seed, on which random choices depend."""
    total = len(drawn["label"])

    def chosen(way: str, count: int, by: str | None, seed: int) -> Split:
        index = synthetic.select(drawn, way, count, by, seed)
        return Split(drawn["image"][index], drawn["label"][index])

    def random(count: int) -> Callable[[int], Split]:
        return partial(chosen, "random", count, None)

    def halves(way: str) -> dict[str, Callable[[int], Split]]:
        scores = [score for score in synthetic.BETTER if score in drawn]
        return {f"{way} half by {x}": partial(chosen, way, total // 2, x) for x in scores}

    return {
        "real": lambda seed: real,
        "all drawn": random(total),
        "real and all drawn": lambda seed: joined(real, random(total)(seed)),
        **halves("best"),
        "random half": random(total // 2),
        **halves("worst"),
        "random quarter": random(total // 4),
        "random twentieth": random(total // 20),
    }


def joined(*splits: Split) -> Split:
    return Split(torch.cat([x.images for x in splits]), torch.cat([x.labels for x in splits]))


def train_classifier(dataset: Dataset, arm: str, split: Split, seed: int, images_seen: int) -> None:
    """A cell of the classifier: its accuracy on real images."""

    def measure(model: Any, seed: int) -> Figures:
        found = protocol.judge_figures(model, dataset)
        return {
            "test accuracy, %": 100 * found["accuracy"],
            "validation accuracy, %": 100 * found["accuracy_val"],
        }

    run_cell(
        "synthetic-classifier",
        {"trained on": arm, "images": len(split), "images seen": images_seen},
        for_images(RECIPES["mnist-cnn"], images_seen, split),
        replace(dataset, train=split),
        seed,
        measure,
        exact=None,
    )


def for_images(recipe: Recipe, images_seen: int, split: Split) -> Recipe:
    return replace(recipe, name="trial", max_seconds=None, epochs=images_seen / len(split))


class Bench:
    """Trains generators and measures them on real images."""

    def __init__(
        self, dataset: Dataset, generator: str, images_seen: int, num_samples: int
    ) -> None:
        self.dataset, self.generator, self.images_seen = dataset, generator, images_seen
        self.quality = Quality(dataset, num_samples)
        self.recipe = find_recipe(generator)

    def train(self, part: str, settings: dict[str, Any], split: Split, seed: int) -> Path:
        """A cell of the generator; the path of its weights."""
        settings |= {"generator": self.generator, "images": len(split)}
        settings |= {"images seen": self.images_seen}
        recipe = for_images(self.recipe, self.images_seen, split)
        dataset = replace(self.dataset, train=split)
        name = f"synthetic-{part}"
        run_cell(name, settings, recipe, dataset, seed, self.measure)
        return RUNS / trials.name_of(name, settings, seed) / "model.safetensors"

    def measure(self, model: Any, seed: int) -> Figures:
        """Likelihood of real images by the fitted distribution, and figures of drawn ones."""
        with stages() as report:
            test = self.dataset.test
            bits = bits_per_dim(model, test, fitted=True, report=report, stage="test bits/dim")
        figures: Figures = {"test bits/dim, as fitted": bits}
        images, labels = self.quality.draw(model, seed)
        found = precision_recall(self.quality.reference, self.quality.features(images))
        figures |= self.quality.judged(images, labels)
        return figures | {f"{name}, %": 100 * value for name, value in found.items()}


def run_chain(bench: Bench, seed: int, data: Path | None) -> None:
    """Three generations after the generator trained on real images, for each of WAYS."""
    real = bench.dataset.train
    first = bench.train("generator", {"trained on": "real"}, real, seed)
    for way in WAYS:
        weights, sets = first, list[Columns]()
        for number in range(1, GENERATIONS + 1):
            # Both ways begin with the same drawn set.
            name = f"{way}-{number}" if number > 1 else "first"
            place = SETS / f"{bench.generator}-{bench.images_seen}-seed-{seed}-{name}"
            image_seed = 2**31 + (16 * seed + number) * protocol.SEEDS_APART
            synth(place, n=len(real), model=str(weights), seed=image_seed, data=data)
            sets.append(synthetic.load(place))
            splits = [Split(x["image"], x["label"]) for x in sets]
            split = splits[-1] if way == "replaced" else joined(real, *splits)
            settings = {"data": way, "generation": number}
            weights = bench.train("chain", settings, split, seed)


def say_differences(rows: list[Row]) -> None:
    """Each arm against as many random images: mean and standard error over the seeds."""
    groups = by_arm(rows)
    control = {row["metrics"]["seed"]: row for row in groups.get("random half", ())}
    for arm, group in groups.items():
        pairs = [(row, control.get(row["metrics"]["seed"])) for row in group]
        both = [(row["metrics"]["figures"], x["metrics"]["figures"]) for row, x in pairs if x]
        for name in both[0][0] if len(both) > 1 and arm != "random half" else ():
            found = [figures[name] - other[name] for figures, other in both]
            error = stdev(found) / len(found) ** 0.5
            print(f"{arm} − random half · {name} · {mean(found):+.3g} ± {error:.2g}")


def by_arm(rows: list[Row]) -> dict[str, list[Row]]:
    groups = trials.by_settings(rows)
    return {str(x[0]["metrics"]["settings"]["trained on"]): x for x in groups}


def plot() -> Figure:
    """Each arm's classifiers and generators, accuracy by number of images, and the chain."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    (left, right), (curve, chain) = figure.subplots(2, 2)
    classifiers, generators = (by_arm(results(f"synthetic-{x}")) for x in PARTS[:2])
    for axes, groups, name in (
        (left, classifiers, "test accuracy, %"),
        (right, generators, "test bits/dim, as fitted"),
    ):
        for place, group in enumerate(groups.values()):
            found = trials.figures_of(group, name)
            axes.plot(found, [-place] * len(found), "o", color="tab:blue", alpha=0.7)
        axes.set(xlabel=name, yticks=[-x for x in range(len(groups))], yticklabels=groups)
    for label, first in (("real", ("real",)), ("drawn, at random", ("all", "random"))):
        arms = [arm for arm in classifiers if arm.split()[0] in first and " and " not in arm]
        rows = [row for arm in arms for row in classifiers[arm]]
        x = [row["metrics"]["settings"]["images"] for row in rows]
        curve.plot(x, trials.figures_of(rows, "test accuracy, %"), "o", label=label, alpha=0.7)
    curve.set(xscale="log", xlabel="different training images", ylabel="test accuracy, %")
    for way in WAYS:
        rows = [x for x in results("synthetic-chain") if x["metrics"]["settings"]["data"] == way]
        zero = generators.get("real", []) if rows else []
        x = [row["metrics"]["settings"].get("generation", 0) for row in [*zero, *rows]]
        chain.plot(x, trials.figures_of([*zero, *rows], "fd_cnn"), "o", label=way, alpha=0.7)
    chain.set(xlabel="generation", ylabel="fd_cnn of its digits")
    for axes in (left, right, curve, chain):
        axes.grid(alpha=0.3)
    curve.legend()
    chain.legend()
    return figure


if __name__ == "__main__":
    start(main, __doc__)
