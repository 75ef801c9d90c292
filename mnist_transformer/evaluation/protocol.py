"""The evaluation protocol, one for every model: likelihood, drawn images, copies, speed.

Likelihood: bits/dim of the whole test and validation sets, over all dimensions. Drawn images:
class-balanced samples, once per seed, plain and guided, as mean and standard deviation over the
seeds. The shipped judge measures them, next to a floor: an equal number of training images. A
tokenizer is judged by its reconstructions, next to a ceiling: the floor's images encoded and
decoded, which models over its codes can hardly surpass. Without a shipped judge, only likelihood,
speed and reconstruction error are measured. Test data measures; it never chooses anything.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.data import Dataset, DataSpec, Split, load_dataset
from mnist_transformer.evaluation import metrics
from mnist_transformer.evaluation.metrics import Progress, quiet
from mnist_transformer.evaluation.speed import sampling_speed, throughput
from mnist_transformer.models.base import GenerativeModel, Judge, Model, Tokenizer, in_batches
from mnist_transformer.models.loading import find_weights, load_model, shipped
from mnist_transformer.options import Sampling
from mnist_transformer.recipes import RECIPES, Recipe
from mnist_transformer.training.info import read_info

SEEDS_APART = 2**20  # image seeds of one evaluation seed; torch uses only the lowest 32 bits
Metrics = dict[str, Any]
Images = tuple[Tensor, Tensor]
"""uint8 (N, C, H, W), and their labels int64 (N,)."""


@dataclass(frozen=True)
class Samples:
    """The images that a model is judged by."""

    num_samples: int = 10_000  # class-balanced images in a set
    seeds: Sequence[int] = (0, 1, 2)  # one set for each
    guidances: Sequence[float] = (1.0, 2.0)  # for a model that has guidance


FULL = Samples()


def evaluate(
    model: str | os.PathLike[str] | Model,
    dataset: str | Dataset | None = None,
    samples: Samples = FULL,
    *,
    device: str | None = None,
    recipe: Recipe | None = None,
    report: Progress = quiet,
) -> Metrics:
    """Measure a model: likelihood, drawn images and speed, as far as they apply.

    Args:
        model: a loaded model, or the name or path of one, as ``load`` takes them.
        dataset: by default the one that the model was trained on.
        device: for a model that is not loaded yet.
        recipe: one of RECIPES, to measure training speed too; by default the one that the
            checkpoint of a model that is not loaded names.

    Raises ValueError as ``load`` and ``check_measurable`` do.
    """
    if not isinstance(model, Model):
        path = find_weights(model)
        recipe = recipe or RECIPES.get(read_info(path).recipe)
        model = load_model(path, device)
    check_measurable(model, samples)
    if not isinstance(dataset, Dataset):
        dataset = load_data(model, recipe) if dataset is None else load_dataset(dataset)
    if isinstance(model, Judge):
        return judge_figures(model, dataset)
    found: Metrics = {}
    judge = load_judge(dataset.spec) if dataset.spec.judge in shipped() else None
    if judge is not None:
        # Sets of equal size: of test images, and of training images for each seed.
        test = dataset.test.spaced(samples.num_samples).images
        real = [balanced_subset(dataset.train, samples.num_samples, seed) for seed in samples.seeds]
        judged = partial(_judged, judge, in_batches(judge, judge.features, test), report)
        found = {
            "num_samples": samples.num_samples,
            "num_seeds": len(samples.seeds),
            "floor": judged("judge training images", real),
        }
    if isinstance(model, GenerativeModel):
        if model.likelihood is not None:
            bits = partial(metrics.bits_per_dim, model, report=report)
            found["bits_per_dim_val"] = bits(dataset.val, stage="validation bits/dim")
            found["bits_per_dim"] = bits(dataset.test)
            found["bits_per_dim_null"] = bits(dataset.test, use_labels=False, stage="no class")
            if model.built_in_guidance != 1:
                found["bits_per_dim_fitted"] = bits(dataset.test, fitted=True, stage="as fitted")
        speeds = {str(size): sampling_speed(model, size, report=report) for size in (1, 256)}
        found["images_per_second"] = speeds
        if judge is not None:
            train, test = dataset.train.images, dataset.test.images
            held_out = metrics.nearest_distances(test, train, report, "neighbours of test images")
            found["drawn"] = []
            for guidance in samples.guidances if "guidance" in model.honours else (1.0,):
                how = Sampling(guidance=guidance)
                draw = partial(draw_balanced, model, samples.num_samples, how=how, report=report)
                sets = [draw(seed=seed) for seed in samples.seeds]
                copies = metrics.copy_check(sets[0][0], train, held_out, report)  # of one set
                figures = judged("judge drawn images", sets)
                found["drawn"].append({"guidance": guidance, **figures, "copies": copies})
    else:
        assert isinstance(model, Tokenizer)
        coded = partial(in_batches, model, model.reconstruct)
        for name, split in (("", dataset.test), ("_val", dataset.val)):
            figures = _reconstruction(judge, split, coded(split.images))
            found["reconstruction" + name] = figures | model.figures(split.images, split.labels)
        if judge is not None:
            ceiling = [(coded(images).to(torch.uint8), labels) for images, labels in real]
            found["ceiling"] = judged("judge their reconstructions", ceiling)
    if recipe is not None:
        found["throughput"] = throughput(model, recipe, dataset.train, report=report)
    return found


def load_data(
    model: Model, recipe: Recipe | None, folder: str | os.PathLike[str] | None = None
) -> Dataset:
    """The data set that a model was trained on, from a folder of its files as for training.

    Raises ValueError as ``load_dataset`` does, and if images or classes are not the model's.
    """
    spec: DataSpec = model.config.data
    name = recipe.dataset if recipe else spec.name.partition(":")[0]
    how = {"size": spec.shape[1], "channels": spec.shape[0]} if name == "folder" else {}
    dataset = load_dataset(name, folder, **how)
    found, expected = ((x.shape, x.class_names) for x in (dataset.spec, spec))
    if found != expected:
        raise ValueError(f"{dataset.spec.name} has {found}, the model expects {expected}")
    return dataset


def check_measurable(model: Model, samples: Samples) -> None:
    """Raise ValueError for a kind of model that is not measured, or too few samples or seeds."""
    if not isinstance(model, Judge | GenerativeModel | Tokenizer):
        wrong = f"a {type(model).__name__.lower()} neither draws, nor encodes, nor judges"
        other = "its reading is measured by `python -m experiments.prompting`"
        raise ValueError(f"{wrong}: {other}")
    least = 2 * model.num_classes if isinstance(model, GenerativeModel) else 2
    if samples.num_samples < least or not samples.seeds:
        got = f"got {samples.num_samples} samples and {len(samples.seeds)} seeds"
        raise ValueError(f"{got}, expected {least} samples or more and a seed or more")


def load_judge(spec: DataSpec) -> Judge:
    """The shipped judge of a data set's images; ValueError if there is none, or it is broken."""
    if spec.judge is None:
        raise ValueError(f"{spec.name} has no judge, expected a data set that has one")
    judge = load_model(spec.judge, "cpu")
    if not isinstance(judge, Judge):
        raise ValueError(f"{spec.judge} holds a {type(judge).__name__}, expected a judge")
    return judge


def draw_balanced(
    model: GenerativeModel,
    num_samples: int,
    seed: int,
    how: Sampling,
    *,
    batch_size: int = 256,
    report: Progress = quiet,
) -> Images:
    """Draw images with the labels 0, 1, 2, ... in turn."""
    index = torch.arange(num_samples)
    labels, images = index % model.num_classes, []
    for batch in index.split(batch_size):
        images.append(model.sample(labels[batch], (seed * SEEDS_APART + batch).tolist(), how))
        stage = f"draw with guidance {how.guidance:g}, seed {seed}"
        report(stage, int(batch[-1]) + 1, num_samples)
    return torch.cat(images), labels


def balanced_subset(split: Split, num_samples: int, seed: int) -> Images:
    """As many real images of each class as ``draw_balanced`` draws, without repetition."""
    num_classes = int(split.labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(num_classes):
        wanted = len(range(label, num_samples, num_classes))
        index = (split.labels == label).nonzero().squeeze(1)
        chosen.append(index[torch.randperm(len(index), generator=generator)[:wanted]])
    index = torch.cat(chosen)
    return split.images[index], split.labels[index]


def _judged(
    judge: Judge, reference_NF: Tensor, report: Progress, stage: str, sets: Sequence[Images]
) -> Metrics:
    """Figures of the sets, one per seed, against test features: mean and standard deviation."""
    found = []
    for done, (images, labels) in enumerate(sets, start=1):
        features_NF = in_batches(judge, judge.features, images)
        agreement = metrics.class_agreement(features_NF, labels, judge)
        distance = metrics.fd_cnn(reference_NF, features_NF)
        shares = metrics.precision_recall(reference_NF, features_NF)
        found.append({"agreement": agreement, "fd_cnn": distance, **shares})
        report(stage, done, len(sets))
    columns = {name: [figures[name] for figures in found] for name in found[0]}
    return {k: {"mean": mean(x), "sd": stdev(x) if len(x) > 1 else 0.0} for k, x in columns.items()}


def _reconstruction(judge: Judge | None, split: Split, images: Tensor) -> dict[str, float]:
    """Figures of a split's reconstructed images; squared error of pixels in [0, 1]."""
    images = images.to(torch.uint8)
    lost = {"squared_error": F.mse_loss(images / 255, split.images / 255).item()}
    if judge is None:
        return lost
    real, coded = (in_batches(judge, judge.features, x) for x in (split.images, images))
    return lost | {
        "agreement": metrics.class_agreement(coded, split.labels, judge),
        "fd_cnn": metrics.fd_cnn(real, coded),
    }


def judge_figures(model: Judge, dataset: Dataset) -> Metrics:
    """Accuracy and cross-entropy (nats) of a judge on the test and validation sets."""
    found: Metrics = {}
    for suffix, split in (("", dataset.test), ("_val", dataset.val)):
        logits_NK = in_batches(model, model.logits, split.images)
        right_N = logits_NK.argmax(-1) == split.labels
        found["accuracy" + suffix] = right_N.double().mean().item()
        found["cross_entropy" + suffix] = F.cross_entropy(logits_NK, split.labels).item()
    return found
