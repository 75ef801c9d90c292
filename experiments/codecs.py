"""How small do lossless codecs make the images of a data set's test set?

    python -m experiments.codecs --dataset cifar10-jpeg --data FOLDER
    python -m experiments.codecs --dataset mnist

A file holds one image, or 1,000 of them: the picture codecs get a sheet of 40 to a row, the
general ones the images' bytes one behind the other. All bytes of a file count, its header too.
A JPEG copy was smaller before it was decoded: its own files stand beside the codecs.

JPEG XL needs ``pip install pillow-jxl-plugin`` and is left out without it.
"""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.common import record, start
from mnist_transformer.data import load_dataset
from mnist_transformer.evaluation import ledger
from mnist_transformer.utils.images import grid
from mnist_transformer.utils.terminal import stages
from tools import trials

COLUMNS = 40
PICTURES: Mapping[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WebP": {"lossless": True, "quality": 100, "method": 6},
    "JXL": {"lossless": True, "effort": 9},
}
# The dictionary is as large as the file: larger ones only take time, ten times as much.
LZMA = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}
BYTES: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, compresslevel=9, mtime=0),
    "bz2": bz2.compress,
    "lzma": lambda raw: lzma.compress(raw, filters=[LZMA | {"dict_size": max(4096, len(raw))}]),
}


def main(
    dataset: str = "mnist",
    data: Path | None = None,
    codecs: tuple[str, ...] = (*PICTURES, *BYTES),
    sheet: int = 1000,
) -> None:
    """Measure what the ledger does not have yet.

    Args:
        dataset: Its name, such as cifar10-jpeg.
        data: The folder with its files; otherwise as for training.
        codecs: Names of codecs.
        sheet: Images in a sheet.
    """
    found = load_dataset(dataset, data)
    rows = ledger.rows(ledger.results_folder() / "ledger.jsonl")
    done = {(row["dataset"], row["recipe"]) for row in rows}

    def measure(codec: str, count: int, bits: Callable[[], float]) -> None:
        settings: trials.Settings = {"codec": codec, "images in a file": count}
        if (found.spec.name, trials.name_of("codecs", settings)) not in done:
            figures = {"test bits/dim": bits()}
            record("codecs", settings, figures, dataset=found.spec.name, exact=None)

    if found.spec.name == "cifar10-jpeg" and data is not None:
        for codec, size in jpeg_sizes(data).items():
            measure(codec, 1, lambda size=size: 8 * size / found.test.images.numel())
    for codec in codecs:
        if codec not in (*PICTURES, *BYTES):
            raise ValueError(
                f"codec is {codec!r}, expected one of {', '.join((*PICTURES, *BYTES))}"
            )
        if codec == "JXL" and not find_spec("pillow_jxl"):
            print("JPEG XL is left out: it needs pip install pillow-jxl-plugin")
            continue
        for count in (1, sheet):
            measure(codec, count, partial(bits_per_dim, codec, found.test.images, count))


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


def bits_per_dim(codec: str, images: Tensor, count: int) -> float:
    """Bits per dimension of images uint8 (N, C, H, W), with ``count`` images in each file."""
    size, files = 0, images.split(count)
    with stages() as report:
        for number, part in enumerate(files, start=1):
            size += len(compressed(codec, part))
            report(f"{codec}, {count} in a file", number, len(files))
    return 8 * size / images.numel()


def compressed(codec: str, images: Tensor) -> bytes:
    """A file of images uint8 (N, C, H, W)."""
    if codec in BYTES:
        return BYTES[codec](images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    if codec == "JXL":
        import pillow_jxl  # noqa: F401 - Pillow then knows the format
    content = io.BytesIO()
    grid(images, COLUMNS).save(content, codec, **PICTURES[codec])
    return content.getvalue()


if __name__ == "__main__":
    start(main, __doc__)
