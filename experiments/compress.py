"""How large a file do test images make, by a model and by the usual codecs?

    python -m experiments.compress

A row of ours is written only after the file gave every pixel back. Ours, gzip, bz2 and lzma have
all images in one file; so has "one sheet" of a picture format, whose other row is the sum of one
file for each image. JPEG XL is measured where the package pillow-jxl-plugin is installed.
"""

import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePath
from statistics import mean

import numpy as np
import torch
from PIL import Image

from experiments.codecs import BYTES, PICTURES
from experiments.common import Figures, is_done, record, start
from mnist_transformer.data import Split, idx, load_dataset
from mnist_transformer.models import codec
from mnist_transformer.models.base import GenerativeModel, in_batches
from mnist_transformer.models.loading import load
from mnist_transformer.utils.images import grid
from mnist_transformer.utils.terminal import stages

with suppress(ImportError):
    import pillow_jxl  # noqa: F401 - it makes Pillow write JPEG XL

PACKERS = {"gzip -9": BYTES["gzip"], "bz2 -9": BYTES["bz2"], "lzma -9e": BYTES["lzma"]}


def main(
    data: Path | None = None,
    dataset: str = "mnist",
    model: str = "mnist-scan",
    num_images: int = 10_000,
    num_alone: int = 100,
    again: bool = False,
) -> None:
    """Measure what the ledger does not have yet.

    Args:
        data: The data set's folder; otherwise as for training.
        model: A shipped model, a checkpoint or a run's folder, for the first row.
        num_images: Test images, evenly spread if fewer than all.
        num_alone: As many of them are compressed alone, too.
        again: Measure what the ledger has as well.
    """
    found = load_dataset(dataset, data)
    split = found.test.spaced(num_images)
    values = split.images[:, 0] if found.spec.shape[0] == 1 else split.images
    content = idx.header(tuple(values.shape)) + values.numpy().tobytes()
    extensions = Image.registered_extensions().values()
    ways: dict[str, Callable[[], Figures]] = {
        PurePath(model).name: lambda: ours(load(model, "cpu"), model, split, num_alone)
    }
    for name, pack in PACKERS.items():
        ways[name] = lambda pack=pack: {"bytes": len(pack(content))}
    for name, options in PICTURES.items():
        if name.upper() in extensions:
            how = {"format": name} | options
            ways[f"{name}, one sheet"] = lambda x=how: {"bytes": sheet_bytes(split, x)}
            ways[name] = lambda x=how: {
                "bytes": sum(picture_bytes(grid(image[None], 1), x) for image in split.images)
            }
    for name, measure in ways.items():
        settings = {"codec": name, "images": len(split)}
        if is_done("compress", settings, again=again):
            continue
        figures = measure()
        size = figures.pop("bytes")
        assert size is not None
        rate = 8 * size / split.images.numel()
        figures = {"kB": size / 1000, "bits/dim": rate} | figures
        record("compress", settings, figures, dataset=found.spec.name)


def ours(coder: GenerativeModel, model: str, split: Split, num_alone: int) -> Figures:
    """Sizes and speeds of a model's code, beside what the model says they should be."""
    values, seconds = split.images.numpy(), []
    with stages() as report:
        codec.encode(values[:1], (), model, report)  # MNIST's scans are looked up from now on
        seconds.append(time.perf_counter())
        content = codec.encode(values, (), model, report)
        seconds.append(time.perf_counter())
        again, _ = codec.decode(content, model, model, report, print)
        seconds.append(time.perf_counter())
        if not np.array_equal(again, values):
            raise ValueError(f"{model} did not give the images back, expected every pixel")
        alone = split.spaced(num_alone).images.numpy()
        sizes = [len(codec.encode(x[None], (), model, report)) for x in alone]
        null = torch.full((len(values),), coder.num_classes)
        bits = [in_batches(coder, coder.nats, split.images, x) for x in (null, split.labels)]
    without, given = (x.mean().item() / np.log(2) / values[0].size for x in bits)
    return {
        "bytes": len(content),
        "the model's bits/dim without a class": without,
        "given the class": given,
        "written images/s": len(values) / (seconds[1] - seconds[0]),
        "read images/s": len(values) / (seconds[2] - seconds[1]),
        "bytes of one image alone": mean(sizes),
        "of the largest": max(sizes),
    }


def sheet_bytes(split: Split, options: dict) -> int:
    """The size of one picture of all images, about square."""
    return picture_bytes(grid(split.images, int(len(split) ** 0.5)), options)


def picture_bytes(picture: Image.Image, options: dict) -> int:
    """The size of a picture file, which must be lossless."""
    file = io.BytesIO()
    picture.save(file, **options)
    with Image.open(file) as again:
        if np.asarray(again.convert(picture.mode)).tobytes() != np.asarray(picture).tobytes():
            raise ValueError(f"{options['format']} changed pixels, expected none")
    return file.tell()


if __name__ == "__main__":
    start(main, __doc__)
