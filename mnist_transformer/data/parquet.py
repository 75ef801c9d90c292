"""Parquet files of labelled pictures, laid out as data sets on the Hugging Face Hub are.

A row has ``img``, with the bytes of a picture file, and ``label``. All pictures are of one size.
"""

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mnist_transformer.utils.files import write_atomic

# Errors of pyarrow, of a row of the wrong types, and of Pillow.
DAMAGED = (
    *(ValueError, KeyError, TypeError, OSError, NotImplementedError, SyntaxError, OverflowError),
    *(Image.DecompressionBombError, struct.error),
)


def library() -> Any:
    """The package pyarrow; ValueError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        needs = "parquet files need the package pyarrow: pip install 'mnist-transformer[parquet]'"
        raise ValueError(needs) from error
    return pyarrow


def read(
    paths: Sequence[Path], size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], set[str | None]]:
    """Images uint8 (N, 3, H, W), labels int64 (N,), and the formats of the pictures.

    ``size`` is (W, H), by default that of the first picture. ValueError: another size, no picture,
    or a damaged file.
    """
    read_table, images, labels, formats = library().parquet.read_table, [], [], set()
    for path in paths:
        try:
            for row in read_table(path, columns=["img", "label"]).to_pylist():
                content = BytesIO(row["img"]["bytes"])
                with Image.open(content, formats=("PNG", "JPEG")) as picture:
                    size = size or picture.size
                    if picture.size != size:
                        raise ValueError(f"a picture is {picture.width}x{picture.height}")
                    images.append(np.asarray(picture.convert("RGB")))
                    formats.add(picture.format)
                labels.append(np.int64(row["label"]))
        except DAMAGED as error:
            of = " of {}x{}".format(*size) if size else ""
            expected = f"expected img with the bytes of a picture{of}, and label, in each row"
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} is damaged or another file ({reason}), {expected}") from error
    if not images:
        raise ValueError(f"{', '.join(map(str, paths))} holds no picture, expected one or more")
    return np.stack(images).transpose(0, 3, 1, 2), np.array(labels, np.int64), formats


def write(path: Path, images: Tensor, labels: Tensor) -> None:
    """Write colour images uint8 (N, 3, H, W), as PNG, and labels (N,); raises OSError."""
    content, rows = BytesIO(), []
    for image in images.movedim(1, -1).numpy():
        picture = BytesIO()
        Image.fromarray(image).save(picture, "PNG")
        rows.append({"bytes": picture.getvalue(), "path": None})
    pyarrow = library()
    pyarrow.parquet.write_table(pyarrow.table({"img": rows, "label": labels.numpy()}), content)
    write_atomic(path, content.getvalue())
