"""The evaluation protocol, one for every model: likelihood, drawn digits, copies, speed.

Likelihood: bits/dim of the whole test and validation sets over all pixels. Drawn digits:
class-balanced samples, once a seed, plain and guided, as mean and standard deviation over the
seeds, judged on the features of the shipped classifier beside a floor: as many training images
in place of the samples. A tokenizer is judged by what it makes of real images. Test data
measures and chooses nothing.
"""

import math
from collections.abc import Sequence
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.data import Dataset, DataSpec, Split
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation.metrics import (
    Progress,
    class_agreement,
    copy_check,
    fd_cnn,
    nearest_distances,
    precision_recall,
    quiet,
)
from mnist_transformer.evaluation.speed import sampling_speed, throughput
from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import (
    GenerativeModel,
    Model,
    Tokenizer,
    in_batches,
)
from mnist_transformer.models.classifier import Classifier
from mnist_transformer.models.loading import find_weights
from mnist_transformer.options import Sampling
from mnist_transformer.recipes import RECIPES

SEEDS = (0, 1, 2)  # a set of drawn images each
SEEDS_APART = 2**20  # image seeds of one evaluation seed; torch uses only the lowest 32 bits
Metrics = dict[str, Any]


def load_judge(spec: DataSpec) -> Classifier:
    """The shipped classifier whose features and predictions judge a data set's images.

    Raises:
        ValueError: the data set names none, or its weight file is missing or broken.
    """
    if spec.judge is None:
        raise ValueError(f"there is no judge of {spec.name}: train a classifier for it first")
    judge = checkpoint.load(find_weights(spec.judge))
    if not isinstance(judge, Classifier):
        raise ValueError(f"the weights of {spec.judge} hold a {type(judge).__name__}")
    return judge


def bits_per_dim(
    model: Model,
    split: Split,
    *,
    use_labels: bool = True,
    batch_size: int = 250,
    report: Progress = quiet,
    stage: str = "bits/dim",
) -> float:
    """Mean of nats / (ln 2 * C * H * W) over every image of the split, all pixels counted.

    Args:
        use_labels: condition on each image's class; else on none (the null class).

    Raises:
        ValueError: the model has no likelihood or the split no images.
    """
    if model.likelihood is None:
        raise ValueError(f"{type(model).__name__} has no likelihood to measure bits/dim with")
    if not len(split.images):
        raise ValueError("the split holds no images, expected one or more")

    def nats(images: Tensor, labels: Tensor) -> Tensor:
        return model.nll(images, labels if use_labels else None)

    columns, heard = (split.images, split.labels), partial(report, stage)
    nats_N = in_batches(model, nats, *columns, batch_size=batch_size, report=heard)
    return nats_N.sum().item() / (math.log(2) * split.images.numel())


def draw_balanced(
    model: GenerativeModel,
    num_samples: int,
    seed: int,
    how: Sampling,
    *,
    batch_size: int = 256,
    report: Progress = quiet,
    stage: str = "draw",
) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, C, H, W) and their labels int64 (N,): 0, 1, 2, ... again and again."""
    labels = torch.arange(num_samples) % model.num_classes
    images = []
    for start in range(0, num_samples, batch_size):
        batch = labels[start : start + batch_size]
        first = seed * SEEDS_APART + start
        images.append(model.sample(batch, range(first, first + len(batch)), how))
        report(stage, start + len(batch), num_samples)
    return torch.cat(images), labels


def balanced_subset(split: Split, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
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


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


class _Judgement:
    """The reference features, and the figures of image sets beside them, seed by seed."""

    def __init__(self, judge: Classifier, test: Split, num_samples: int, report: Progress) -> None:
        self.judge = judge
        self.report = report
        # Sets of equal size.
        self.reference = in_batches(judge, judge.features, test.spaced(num_samples).images)

    def measure(self, sets: Sequence[tuple[Tensor, Tensor]], stage: str) -> Metrics:
        """Mean and standard deviation over the (images, labels) sets, one a seed."""
        figures: dict[str, list[float]] = {}
        for done, (images, labels) in enumerate(sets):
            features = in_batches(self.judge, self.judge.features, images)
            precision, recall = precision_recall(self.reference, features)
            for name, value in (
                ("agreement", class_agreement(images, labels, self.judge)),
                ("fd_cnn", fd_cnn(self.reference, features)),
                ("precision", precision),
                ("recall", recall),
            ):
                figures.setdefault(name, []).append(value)
            self.report(stage, done + 1, len(sets))
        return {name: _spread(values) for name, values in figures.items()}


def evaluate(
    model: Model,
    recipe_name: str,
    dataset: Dataset,
    *,
    seeds: Sequence[int] = SEEDS,
    num_samples: int = 10_000,
    guidances: Sequence[float] = (1.0, 2.0),
    report: Progress = quiet,
    judge: Classifier | None = None,
    images_seen: int | None = None,
    seconds: float | None = None,
    curve: Sequence[Sequence[float]] | None = None,
    command: str = "",
) -> ledger.Row:
    """Measure a model as the protocol says: a row for ``ledger.append``.

    Args:
        recipe_name: the recipe it was trained by.
        dataset: real images; ``test`` is the reference, ``train`` the floor and the copy check.
        seeds: one class-balanced set of ``num_samples`` images is drawn for each.
        guidances: guidance scales to draw with; a model without guidance is drawn plainly.
        report: called with (stage, done, total) all along.
        judge: classifier to judge with; the shipped one by default.
        images_seen, seconds: length of the training, if known.
        curve: its validation figures, see ``runlog.validation_curve``.
        command: what the user typed, for the record.

    Raises:
        ValueError: as in ``check_measurable``, or a missing judge.
    """
    check_measurable(model, num_samples, seeds)
    exact = None
    if isinstance(model, Classifier):
        metrics = classifier_figures(model, dataset)
    elif isinstance(model, GenerativeModel):
        judge = judge or load_judge(dataset.spec)
        if model.likelihood is not None:
            exact = model.likelihood == "exact"
        metrics = {
            **likelihood_figures(model, dataset, report),
            "images_per_second": {
                str(size): sampling_speed(model, size, report=report) for size in (1, 256)
            },
            **drawing_figures(
                model,
                dataset,
                judge,
                seeds=seeds,
                num_samples=num_samples,
                guidances=guidances,
                report=report,
            ),
        }
    else:
        assert isinstance(model, Tokenizer)
        judge = judge or load_judge(dataset.spec)
        metrics = tokenizer_figures(
            model, dataset, judge, seeds=seeds, num_samples=num_samples, report=report
        )
    if recipe_name in RECIPES and not isinstance(model, Classifier):
        speed = throughput(model, RECIPES[recipe_name], dataset.train, report=report)
        metrics["throughput"] = speed._asdict()
    if curve is not None:
        metrics["curve"] = curve
    return ledger.make_row(
        recipe_name,
        metrics,
        dataset=dataset.spec.name,
        parameters=model.num_parameters,
        device=str(model.device),
        exact=exact,
        images_seen=images_seen,
        seconds=seconds,
        command=command,
    )


def check_measurable(model: Model, num_samples: int, seeds: Sequence[int]) -> None:
    """Raises ValueError for a model of no kind that is measured, or too few samples or seeds."""
    if not isinstance(model, Classifier | GenerativeModel | Tokenizer):
        raise ValueError(
            f"a {type(model).__name__.lower()} neither draws, nor encodes, nor classifies: what "
            "it reads is measured by `python -m experiments.prompting`"
        )
    least = 2 * model.num_classes if isinstance(model, GenerativeModel) else 2
    if num_samples < least or not seeds:
        raise ValueError(
            f"got {num_samples} samples and {len(seeds)} seeds, "
            f"expected {least} samples or more and a seed or more"
        )


def likelihood_figures(model: Model, dataset: Dataset, report: Progress = quiet) -> Metrics:
    """Bits/dim given the class (validation, test) and without it (test), if the model has any."""
    if model.likelihood is None:
        return {}
    return {
        name: bits_per_dim(model, split, use_labels=use_labels, report=report, stage=name)
        for name, split, use_labels in (
            ("bits_per_dim_val", dataset.val, True),
            ("bits_per_dim", dataset.test, True),
            ("bits_per_dim_null", dataset.test, False),
        )
    }


def drawing_figures(
    model: GenerativeModel,
    dataset: Dataset,
    judge: Classifier,
    *,
    seeds: Sequence[int],
    num_samples: int,
    guidances: Sequence[float],
    report: Progress = quiet,
) -> Metrics:
    """Drawn images, set by set, and the floor, as judged; copies are looked for in one set."""
    judgement = _Judgement(judge, dataset.test, num_samples, report)
    floor = [balanced_subset(dataset.train, num_samples, seed) for seed in seeds]
    held_out = nearest_distances(
        dataset.test.images, dataset.train.images, report, "neighbours of test images"
    )
    metrics: Metrics = {
        "num_samples": num_samples,
        "num_seeds": len(seeds),
        "floor": judgement.measure(floor, "judge training images"),
        "drawn": [],
    }
    for guidance in guidances if "guidance" in model.honours else (1.0,):
        how = Sampling(guidance=guidance)
        sets = []
        for seed in seeds:
            stage = f"draw with guidance {guidance:g}, seed {seed}"
            sets.append(draw_balanced(model, num_samples, seed, how, report=report, stage=stage))
        copies = copy_check(sets[0][0], dataset.train.images, held_out, report)
        figures = judgement.measure(sets, "judge drawn images")
        metrics["drawn"].append({"guidance": guidance, **figures, "copies": copies._asdict()})
    return metrics


def tokenizer_figures(
    model: Tokenizer,
    dataset: Dataset,
    judge: Classifier,
    *,
    seeds: Sequence[int],
    num_samples: int,
    report: Progress = quiet,
) -> Metrics:
    """What is left of real images when they are coded and decoded, and how codes are used.

    ``reconstruction``: the test set (and ``reconstruction_val`` the validation set) against
    itself: squared error of pixels in [0, 1], class agreement, fd_cnn, and the model's own
    ``figures``. ``ceiling``: as ``floor``, training images in the place of samples, but coded and
    decoded, which no model over these codes can be expected to surpass.
    """
    assert isinstance(model, Model)

    def again(images: Tensor) -> Tensor:
        return in_batches(model, model.reconstruct, images).to(torch.uint8)

    metrics: Metrics = {"num_samples": num_samples, "num_seeds": len(seeds)}
    for suffix, split in (("", dataset.test), ("_val", dataset.val)):
        images = again(split.images)
        features = [in_batches(judge, judge.features, x) for x in (split.images, images)]
        metrics["reconstruction" + suffix] = {
            "squared_error": F.mse_loss(images / 255, split.images / 255).item(),
            "agreement": class_agreement(images, split.labels, judge),
            "fd_cnn": fd_cnn(*features),
            **model.figures(split.images, split.labels),
        }
    judgement = _Judgement(judge, dataset.test, num_samples, report)
    real = [balanced_subset(dataset.train, num_samples, seed) for seed in seeds]
    metrics["floor"] = judgement.measure(real, "judge training images")
    coded = [(again(images), labels) for images, labels in real]
    metrics["ceiling"] = judgement.measure(coded, "judge their reconstructions")
    return metrics


def classifier_figures(model: Classifier, dataset: Dataset) -> Metrics:
    """Accuracy and cross-entropy (nats) of a classifier on the test and validation sets."""
    metrics: Metrics = {}
    for suffix, split in (("", dataset.test), ("_val", dataset.val)):
        logits = in_batches(model, model.logits, split.images)
        right = logits.argmax(-1) == split.labels
        metrics["accuracy" + suffix] = right.double().mean().item()
        metrics["cross_entropy" + suffix] = F.cross_entropy(logits, split.labels).item()
    return metrics


def sample_sheet(
    model: GenerativeModel, *, per_class: int = 10, seed: int = 0, how: Sampling | None = None
) -> Tensor:
    """Images for the sheet of samples, a row of ``per_class`` a class, never picked: uint8."""
    labels = torch.arange(model.num_classes).repeat_interleave(per_class)
    first = seed * SEEDS_APART
    return model.sample(labels, range(first, first + len(labels)), how)
