"""How large a file do test images make, with a model and with the usual codecs?

    python -m experiments.compress
    python -m experiments.compress --dataset cifar10-jpeg --data FOLDER --models

A model's row is written only after every file gave its pixels back. Models, gzip, bz2 and lzma put
all images into one file; so does "one sheet" of a picture format, whose other row is the sum of
one file per image. A JPEG copy was smaller before it was decoded: its own files are measured too,
with and without the bytes that all of them begin with.

JPEG XL needs ``pip install pillow-jxl-plugin`` and is left out without it.
"""

import bz2
import gzip
import io
import lzma
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from PIL import Image

from experiments.common import Figures, is_done, record, start
from mnist_transformer.data import Split, idx, load_dataset
from mnist_transformer.data.raw import Values
from mnist_transformer.models import codec
from mnist_transformer.models.base import in_batches
from mnist_transformer.models.loading import load
from mnist_transformer.options import FLAGSHIP
from mnist_transformer.utils.classes import class_of
from mnist_transformer.utils.images import grid
from mnist_transformer.utils.terminal import stages

with suppress(ImportError):
    import pillow_jxl  # noqa: F401 - it makes Pillow write JPEG XL

GOAL = 60  # bytes of one image alone
# The dictionary is as large as the file: larger ones only take ten times as long.
LZMA = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}
PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip -9": partial(gzip.compress, compresslevel=9, mtime=0),
    "bz2 -9": bz2.compress,
    "lzma -9e": lambda raw: lzma.compress(raw, filters=[LZMA | {"dict_size": max(4096, len(raw))}]),
}
PICTURES: Mapping[str, dict[str, Any]] = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WebP", "lossless": True, "quality": 100, "method": 6},
    "JPEG XL": {"format": "JXL", "lossless": True, "effort": 9},
}


def main(
    data: Path | None = None,
    dataset: str = "mnist",
    models: tuple[str, ...] = (FLAGSHIP,),
    classes: tuple[str, ...] = (),
    num_images: int = 10_000,
    num_alone: int = 100,
    again: bool = False,
) -> None:
    """Measure what the ledger does not have yet.

    Args:
        data: The data set's folder; otherwise as for training.
        models: Shipped models, checkpoints or runs' folders.
        classes: Take test images of these classes alone.
        num_images: Test images, evenly spread if fewer than all.
        num_alone: How many of them are also compressed one by one.
        again: Measure the models even where the ledger has them.
    """
    found = load_dataset(dataset, data)
    split = found.test
    if classes:
        wanted = [class_of(name, found.spec.class_names) for name in classes]
        split = Split(*split.batch(torch.isin(split.labels, torch.tensor(wanted))))
    split = split.spaced(num_images)

    def measure(name: str, figures: Callable[[], tuple[int, Figures]], again: bool = False) -> None:
        settings: dict[str, str | int] = {"codec": name, "images": len(split)}
        if classes:  # rows of all classes have no such setting
            settings["classes"] = ", ".join(classes)
        if not is_done("compress", settings, dataset=found.spec.name, again=again):
            size, more = figures()
            sizes: Figures = {"kB": size / 1000, "bits/dim": 8 * size / split.images.numel()}
            record("compress", settings, sizes | more, dataset=found.spec.name)

    for model in models:
        measure(PurePath(model).name, partial(ours, model, split, num_alone), again)
    for name, size in usual(split).items():
        measure(name, lambda size=size: (size(), {}))
    if found.spec.name == "cifar10-jpeg" and data is not None and len(split) == len(found.test):
        for name, number in jpeg_sizes(data).items():
            measure(name, lambda number=number: (number, {}))


def ours(model: str, split: Split, num_alone: int) -> tuple[int, Figures]:
    """Size and speed of a model's code, beside what the model says it should be."""
    coder, images = load(model, "cpu"), split.images
    values = as_in_a_file(split)
    round_trip(values[:1], model)  # MNIST's scans are looked up from now on
    size, *speeds = round_trip(values, model)
    sizes = [round_trip(x[None], model)[0] for x in as_in_a_file(split.spaced(num_alone))]
    null = torch.full((len(images),), coder.num_classes)  # a file has no labels
    nats = in_batches(coder, coder.nats, images, null).mean().item()
    return size, {
        "the model's bits/dim": nats / np.log(2) / images[0].numel(),
        "written images/s": speeds[0],
        "read images/s": speeds[1],
        "median bytes of one image alone": median(sizes),
        "mean": mean(sizes),
        "largest": max(sizes),
        f"of {GOAL} or fewer, %": 100 * mean(size <= GOAL for size in sizes),
    }


def as_in_a_file(split: Split) -> Values:
    """The values that an IDX file of the images has: N x H x W, in colour N x 3 x H x W."""
    return (split.images[:, 0] if split.images.shape[1] == 1 else split.images).numpy()


def round_trip(values: Values, model: str) -> tuple[int, float, float]:
    """Bytes of a file; images written and read per second. ValueError: a pixel changed."""
    with stages() as report:
        times = [time.perf_counter()]
        content = codec.encode(values, (), model, report)
        times.append(time.perf_counter())
        again, _ = codec.decode(content, model, model, report, print)
        times.append(time.perf_counter())
    if not np.array_equal(again, values):
        raise ValueError(f"{model} did not give the images back, expected every pixel")
    written, read = len(values) / np.diff(times)
    return len(content), written, read


def usual(split: Split) -> dict[str, Callable[[], int]]:
    """Functions that measure the bytes of the images in each usual format, by its name."""
    images, values = split.images, as_in_a_file(split)
    content = idx.header(values.shape) + values.tobytes()
    sizes: dict[str, Callable[[], int]] = {
        name: lambda pack=pack: len(pack(content)) for name, pack in PACKERS.items()
    }
    for name, options in PICTURES.items():
        if options["format"].upper() not in Image.registered_extensions().values():
            print(f"{name} is left out: it takes pip install pillow-jxl-plugin")
            continue
        sheets = {f"{name}, one sheet": [images], name: images.split(1)}
        for name, parts in sheets.items():
            sizes[name] = partial(picture_bytes, parts, options)
    return sizes


def picture_bytes(parts: Iterable[torch.Tensor], options: Mapping[str, Any]) -> int:
    """The bytes of lossless pictures, each of images in about a square."""
    size = 0
    for images in parts:
        picture, file = grid(images, int(len(images) ** 0.5)), io.BytesIO()
        picture.save(file, **options)
        with Image.open(file) as again:
            if not np.array_equal(again.convert(picture.mode), picture):
                raise ValueError(f"{options['format']} changed pixels, expected none")
        size += file.tell()
    return size


def jpeg_sizes(folder: Path) -> dict[str, int]:
    """Bytes of a copy's own files of test images, with and without what all of them begin with."""
    from pyarrow.parquet import read_table

    paths = sorted(folder.glob("test*.parquet"))
    pictures = [x for path in paths for x in read_table(path, columns=["img"])["img"].to_pylist()]
    files = [picture["bytes"] for picture in pictures]
    pairs = zip(min(files), max(files), strict=False)  # the most different ones
    alike = next(place for place, (a, b) in enumerate(pairs) if a != b)
    size = sum(map(len, files))
    return {"its own JPEG": size, "its own JPEG, no header": size - alike * len(files)}


if __name__ == "__main__":
    start(main, __doc__)
