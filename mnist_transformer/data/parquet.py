"""Images in parquet files as Hugging Face has them: a picture file and a label in each row."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_transformer.utils.files import write_atomic

# Errors of pyarrow, of a row of the wrong types, and of Pillow.
DAMAGED = ValueError, KeyError, TypeError, OSError, SyntaxError, Image.DecompressionBombError


def library(place: Path) -> Any:
    """pyarrow; raises ValueError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        needs = "parquet files need the package pyarrow: pip install 'mnist-transformer[parquet]'"
        raise ValueError(f"{place}: {needs}") from error
    return pyarrow


def read(
    folder: Path, pattern: str, side: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], set[str | None]]:
    """Images (N, 3, side, side) and labels of a folder's files, and the formats of the images.

    Without a side it is that of the first image.
    """
    read_table = library(folder).parquet.read_table
    images, labels, formats = [], [], set()
    for path in sorted(folder.glob(pattern)):
        try:
            for row in read_table(path, columns=["img", "label"]).to_pylist():
                with Image.open(BytesIO(row["img"]["bytes"]), formats=("PNG", "JPEG")) as picture:
                    side = side or picture.width
                    if picture.size != (side, side):
                        raise ValueError(f"a picture is {picture.width}x{picture.height}")
                    images.append(np.asarray(picture.convert("RGB")))
                    formats.add(picture.format)
                labels.append(int(row["label"]))
        except DAMAGED as error:
            of = f"a picture of {side}x{side}, and label, in each row"
            reason = f"is damaged or another file ({str(error).splitlines()[0]})"
            raise ValueError(f"{path} {reason}, expected img with the bytes of {of}") from error
    every = np.array(images, np.uint8).reshape(-1, side or 0, side or 0, 3)
    return every.transpose(0, 3, 1, 2), np.array(labels), formats


def write(path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Write images (N, 3, H, W) as PNG, and their labels; raises OSError."""
    pyarrow, files, content = library(path), [BytesIO() for _ in images], BytesIO()
    for image, file in zip(images.transpose(0, 2, 3, 1), files, strict=True):
        Image.fromarray(image).save(file, "PNG")
    rows = [{"bytes": file.getvalue()} for file in files]
    pyarrow.parquet.write_table(pyarrow.table({"img": rows, "label": labels}), content)
    write_atomic(path, content.getvalue())
