"""Sets of drawn images with a score file, and what is selected from them.

A set is a folder that the data set ``idx`` reads. ``scores.safetensors`` in it has a column per
score: the judge's ``probability`` of the class, the model's ``nats`` of the image given the class,
the ``distance`` to the nearest training image; also each image's ``seed``, and the scans of a
model of scans, as ``Scans`` has them in ``sides`` and ``ink``. Without a judge for the data set
there is no probability, without a likelihood there are no nats.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_transformer.data import idx, load_dataset, parquet
from mnist_transformer.data.scan_file import Scans
from mnist_transformer.evaluation.metrics import nearest_distances
from mnist_transformer.evaluation.protocol import load_judge
from mnist_transformer.models.base import GenerativeModel, in_batches
from mnist_transformer.options import Sampling
from mnist_transformer.utils import trees
from mnist_transformer.utils.checks import check_choice
from mnist_transformer.utils.files import write_atomic

SCORES = "scores.safetensors"
BETTER = {"probability": -1, "nats": 1, "distance": 1}  # times a score: less is better
Columns = dict[str, Tensor]  # "image" (N, C, H, W), "label" (N,), and those of the scores


def drawing(
    model: GenerativeModel, data: Path | None, seed: int, how: Sampling
) -> Callable[[Tensor], Columns]:
    """A function that draws and scores images by their numbers (B,), which tell class and seed.

    ``data`` is the folder of the model's data set, see ``load_dataset``.
    """
    spec = model.config.data
    kind = spec.name.partition(":")[0].removesuffix("-jpeg")
    own = {"size": spec.shape[1], "channels": spec.shape[0]} if kind == "folder" else {}
    train = model.check_images(load_dataset(kind, data, **own).train.images)
    judge = load_judge(spec) if spec.judge else None

    def drawn(number: Tensor) -> Columns:
        labels, seeds = number % model.num_classes, (seed + number).tolist()
        found = {"label": labels, "seed": seed + number}
        if model.draws_scans:
            scans = model.archive = Scans.of(model.scans(labels.tolist(), seeds, how), labels)
            found |= {"sides": scans.sides, "ink": torch.from_numpy(scans.ink)}
        images = scans.images if model.draws_scans else model.sample(labels, seeds, how)
        if judge is not None:
            chances = in_batches(judge, judge.logits, images).softmax(1)
            found["probability"] = chances.gather(1, labels[:, None])[:, 0]
        if model.likelihood is not None:
            found["nats"] = in_batches(model, model.nll, images, labels)
        distance = nearest_distances(images.to(model.device), train).cpu()
        return {"image": images, **found, "distance": distance}

    return drawn


def claim(folder: Path, **made: Any) -> None:
    """Write down how a folder's set is made; ValueError if it holds another one, or other files."""
    note, text = folder / ".made.json", json.dumps(made)
    visible = sorted(folder.glob("[!.]*"))  # before the note is looked for: another may write it
    if note.exists() and (found := note.read_text()) != text:
        raise ValueError(f"{folder} holds another set: {found}, expected {text}")
    if visible and not note.exists():
        raise ValueError(f"{folder} holds {visible[0].name}, expected an empty or a new folder")
    write_atomic(note, text.encode())


def save(folder: Path, columns: Columns) -> None:
    """Write a set; its scores come last and tell that it is whole."""
    scores = dict(columns)
    images, labels = scores.pop("image").numpy(), scores.pop("label").byte().numpy()
    if images.shape[1] == 3:
        parquet.write(folder / "images.parquet", images, labels)
    else:
        idx.write(folder / "images-idx3-ubyte.gz", images[:, 0])
        idx.write(folder / "labels-idx1-ubyte.gz", labels)
    trees.save_state(folder / SCORES, scores)


def load(folder: Path) -> Columns:
    """A set that ``save`` wrote; ValueError if there is none."""
    scores, data = trees.load_state(folder / SCORES), idx.load(folder)
    splits = data.train, data.val, data.test
    images, labels = (torch.cat([getattr(x, y) for x in splits]) for y in ("images", "labels"))
    return {"image": images, "label": labels, **scores}


def select(columns: Columns, way: str, count: int, by: str | None = None, seed: int = 0) -> Tensor:
    """Indices, ascending, of the best, worst or random images of a set, of each class as many.

    ``by`` is a score, unless they are random. Raises ValueError for one that the set does not
    have, or for more images than there are.
    """
    labels = columns["label"]
    if not 1 <= count <= len(labels):
        raise ValueError(f"{way} is {count:,}, expected 1 to the {len(labels):,} that there are")
    if by is None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    else:
        check_choice("by", by, [name for name in BETTER if name in columns])
        order = (BETTER[by] * columns[by]).argsort(stable=True, descending=way == "worst")
    num_classes = int(labels.max()) + 1
    wanted = [len(range(label, count, num_classes)) for label in range(num_classes)]
    kept = [order[labels[order] == label][:most] for label, most in enumerate(wanted)]
    return torch.cat(kept).sort().values
