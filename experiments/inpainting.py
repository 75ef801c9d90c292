"""How well does every family draw around a hole? Held-out digits, one to three quadrants seen.

    python -m experiments.inpainting

One quadrant: the top left is seen; two: the top half; three: all but the bottom right. A
completed digit counts as right when the judge reads the digit that it was cut from. Where a
family has an exact likelihood, three more things follow from it: the class that Bayes' rule gives
a completion that was drawn without one, how well it classifies whole test digits, and nats of
the lower rows given the upper ones (which come first in raster order, so these are exact).
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.common import Figures, is_done, model_name, record, save_images, save_plot, start
from mnist_transformer.data import Split, load_dataset
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation import protocol as evaluate
from mnist_transformer.evaluation.metrics import class_agreement
from mnist_transformer.models import inpaint, loading
from mnist_transformer.models.base import GenerativeModel, in_batches
from mnist_transformer.options import Keep
from mnist_transformer.utils.terminal import stages
from tools.bench import load_shipped

SEEN_ROWS = 12  # whole rows of 4x4 patches: a row of patches is drawn at once in raster order
BATCH = 25  # images at once; each is many particles
QUADRANTS = {1: (slice(0, 14), slice(0, 14)), 2: (slice(0, 14), slice(None))}


def main(
    data: Path | None = None,
    models: tuple[str, ...] = (),
    num_images: int = 500,
    num_classified: int = 10_000,
    again: bool = False,
) -> None:
    """Measure what the ledger does not have yet, then draw the pictures.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        models: Shipped models, checkpoints or folders of runs; otherwise all that are shipped.
        num_images: Test digits to complete, evenly spaced over the test set.
        num_classified: Test digits for the exact likelihoods: Bayes' rule, and nats of rows.
        again: Also measure what the ledger has, as after a model was retrained.
    """
    test = load_dataset("mnist", data).test
    given = {model_name(name): loading.load(name) for name in models}
    for name, model in (given or load_shipped()).items():
        split = test.spaced(num_images)
        for num_quadrants in (1, 2, 3):
            settings = {"model": name, "seen": f"{num_quadrants} of 4 quadrants"}
            if is_done("inpainting", settings, again=again):
                continue
            figures, completed = measure(model, split, num_quadrants)
            exact = True if model.likelihood == "exact" else None
            record("inpainting", settings, figures, model, exact=exact)
            _save_sheet(name, split, observed(num_quadrants), completed, num_quadrants)
        if model.likelihood != "exact":
            continue
        whole = test.spaced(num_classified)
        settings = {"model": name, "seen": "all, classified"}
        if not is_done("inpainting", settings, again=again):
            figures = {"digit inferred right, %": inferred_right(model, whole.images, whole.labels)}
            record("inpainting", settings, figures, model, exact=True)
        settings = {"model": name, "seen": f"the upper {SEEN_ROWS} of 28 rows"}
        if not is_done("inpainting", settings, again=again):
            nats = pixel_nats(model, whole.images, whole.labels)[:, SEEN_ROWS:]
            figures = {"nats of the hidden rows": float(nats.sum((1, 2)).mean())}
            record("inpainting", settings, figures, model, exact=True)
        plot_nats(name, model, test)


def observed(num_quadrants: int) -> Tensor:
    """The mask (1, 28, 28) of what is seen."""
    keep = torch.zeros(1, 28, 28, dtype=torch.bool)
    if num_quadrants == 3:
        keep[:] = True
        keep[:, 14:, 14:] = False
    else:
        keep[0][QUADRANTS[num_quadrants]] = True
    return keep


def complete_all(model: GenerativeModel, split: Split, keep: Tensor, *, use_labels: bool) -> Tensor:
    """One completion of each image, seeded by its number."""
    done = []
    with stages() as report:
        for start in range(0, len(split.images), BATCH):
            images = split.images[start : start + BATCH]
            labels = split.labels[start : start + BATCH] if use_labels else None
            masks = keep.expand(len(images), -1, -1, -1)
            seeds = range(start, start + len(images))
            done.append(model.sample(labels, seeds, keep=Keep(images, masks)))
            report("completing", start + len(images), len(split.images))
    return torch.cat(done)


def inferred_right(model: GenerativeModel, images: Tensor, labels: Tensor) -> float:
    """Percent of the images to which Bayes' rule gives their label."""
    guess = inpaint.class_posterior(model, images).argmax(1)
    return 100 * float((guess == labels).double().mean())


def pixel_nats(model: GenerativeModel, images: Tensor, labels: Tensor) -> Tensor:
    """Nats of each pixel (B, H, W), on the CPU."""
    return in_batches(model, model.pixel_nats, images, labels, batch_size=100)


def measure(model: GenerativeModel, split: Split, num_quadrants: int) -> tuple[Figures, Tensor]:
    """Figures of one mask, and the completions with the label given."""
    keep, judge = observed(num_quadrants), evaluate.load_judge(model.config.data)
    given = complete_all(model, split, keep, use_labels=True)
    unknown = complete_all(model, split, keep, use_labels=False)

    def read_right(images: Tensor) -> float:
        return 100 * class_agreement(in_batches(judge, judge.features, images), split.labels, judge)

    figures: Figures = {
        "read right, digit given, %": read_right(given),
        "read right, digit unknown, %": read_right(unknown),
        "digit inferred right, %": None,
    }
    if model.likelihood == "exact":  # an exact likelihood, where others have a slow bound
        figures["digit inferred right, %"] = inferred_right(model, unknown, split.labels)
    return figures, given


def _save_sheet(name: str, split: Split, keep: Tensor, completed: Tensor, quadrants: int) -> None:
    """One digit of each class per column: the original, what is seen of it, the completion."""
    first = [int((split.labels == label).nonzero()[0]) for label in split.labels.unique()]
    rows = [
        split.images[first].expand(-1, 3, -1, -1),
        torch.stack([inpaint.show_hole(split.images[i], keep) for i in first]),
        completed[first].expand(-1, 3, -1, -1),
    ]
    path = ledger.results_folder() / "inpainting" / f"{name}-{quadrants}.png"
    save_images(torch.cat(rows), 10, path)


def plot_nats(name: str, model: GenerativeModel, test: Split) -> None:
    """Where a digit's bits are: nats per pixel below the digits, and their mean over 1,000."""
    first = [int((test.labels == label).nonzero()[0]) for label in range(6)]
    nats = pixel_nats(model, test.images[first], test.labels[first])
    mean = pixel_nats(model, test.images[:1000], test.labels[:1000]).mean(0)
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots(2, 7)
    for column, (image, found) in enumerate(zip(test.images[first], nats, strict=True)):
        axes[0, column].imshow(image[0], cmap="gray")
        shown = axes[1, column].imshow(found, cmap="magma", vmin=0, vmax=6)
    axes[1, 6].imshow(mean, cmap="magma", vmin=0, vmax=6)
    axes[0, 6].text(0.5, 0.05, "mean of\n1,000 digits", ha="center", va="bottom")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes, label="nats a pixel", shrink=0.8)
    save_plot(figure, f"inpainting/{name}-nats")


if __name__ == "__main__":
    start(main, __doc__)
