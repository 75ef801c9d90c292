"""Sets of drawn images with a score file, and selections from them.

A set is a folder that the data set ``idx`` reads: gzipped IDX, or parquet in colour. Its
``scores.safetensors`` has seeds and the scores of ``BETTER``: the judge's probability of the class
and the model's nats, if available, and the distance to the nearest training image.
"""

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mnist_transformer.data import idx, parquet
from mnist_transformer.evaluation.metrics import nearest_distances
from mnist_transformer.evaluation.protocol import load_data, load_judge
from mnist_transformer.models.base import GenerativeModel, in_batches
from mnist_transformer.models.loading import shipped
from mnist_transformer.options import MAX_BATCH, Sampling
from mnist_transformer.utils import trees
from mnist_transformer.utils.checks import check_choice
from mnist_transformer.utils.files import write_atomic

SCORES = "scores.safetensors"
BETTER = {"probability": -1, "nats": 1, "distance": 1}  # times this factor, less is better
Columns = dict[str, Tensor]  # "image" (N, C, H, W), "label" (N,), and those of the scores


def drawing(
    model: GenerativeModel, data: Path | None, seed: int, how: Sampling
) -> Callable[[range], Columns]:
    """A function that draws and scores images, given numbers that determine class and seed."""
    spec = model.config.data
    if model.num_classes > 256:  # labels are bytes
        raise ValueError(f"{spec.name} has {model.num_classes} classes, expected 256 or fewer")
    if model.image_shape[0] > 1:
        parquet.library()  # raises if there is none, before hours of drawing
    train = model.check_images(load_data(model, None, data).train.images)
    judge = load_judge(spec) if spec.judge in shipped() else None

    def drawn(numbers: range) -> Columns:
        seeds = seed + torch.tensor(numbers)
        labels = torch.tensor(numbers) % model.num_classes
        found = {"label": labels, "seed": seeds}
        if model.archive is not None:  # twice as fast as in small batches
            model.archive = model.scans(labels.tolist(), seeds.tolist(), how)
            images = model.archive.images
        else:  # some families need much memory for an image
            batches = zip(labels.split(MAX_BATCH), seeds.split(MAX_BATCH), strict=True)
            images = torch.cat([model.sample(x, y.tolist(), how) for x, y in batches])
        if judge is not None:
            chances = in_batches(judge, judge.logits, images).softmax(1)
            found["probability"] = chances.gather(1, labels[:, None])[:, 0]
        if model.likelihood is not None:
            found["nats"] = in_batches(model, partial(model.nll, fitted=True), images, labels)
        distance = nearest_distances(images.to(model.device), train).cpu()
        return {"image": images, **found, "distance": distance}

    return drawn


def claim(folder: Path, made: str) -> None:
    """Record how a folder's set is made; ValueError if it holds another set, or other files."""
    note = folder / ".made"
    visible = sorted(folder.glob("[!.]*"))  # before the note, which another process may write
    found = note.read_text() if note.exists() else "".join(path.name for path in visible[:1])
    if found not in ("", made):
        raise ValueError(f"{folder} holds {found}, expected {made} or another folder")
    write_atomic(note, made.encode())


def save(folder: Path, parts: list[Columns]) -> None:
    """Write a set of one part or more; its scores come last and mark it as complete."""
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    images, labels = columns.pop("image"), columns.pop("label").byte()
    if images.shape[1] > 1:
        parquet.write(folder / "images.parquet", images, labels)
    else:
        for name, values in (("images-idx-ubyte", images[:, 0]), ("labels-idx-ubyte", labels)):
            content = idx.header(values.shape) + values.numpy().tobytes()
            write_atomic(folder / f"{name}.gz", gzip.compress(content, 6, mtime=0))
    trees.save_state(folder / SCORES, columns)


def load(folder: Path) -> Columns:
    """A set that ``save`` wrote; ValueError if there is none."""
    scores, data = trees.load_state(folder / SCORES), idx.load(folder)
    splits = data.train, data.val, data.test
    images, labels = (torch.cat([getattr(x, y) for x in splits]) for y in ("images", "labels"))
    return {"image": images, "label": labels, **scores}


def select(columns: Columns, way: str, count: int, by: str | None = None, seed: int = 0) -> Tensor:
    """Indices of the best, worst or (by none) random images, balanced by class.

    ValueError: too many, or no such score.
    """
    labels = columns["label"]
    if not 1 <= count <= len(labels):
        raise ValueError(f"{way} is {count:,}, expected 1 to the {len(labels):,} that there are")
    if by is None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    else:
        check_choice("by", by, [name for name in BETTER if name in columns])
        order = (BETTER[by] * columns[by]).argsort(stable=True, descending=way == "worst")
    by_class = order[labels[order].argsort(stable=True)]
    rank = torch.cat([torch.arange(int(num)) for num in labels.bincount()])
    return by_class[rank.argsort(stable=True)[:count]].sort().values
