"""A user's images byte for byte, to compress: nothing is scaled, turned or left out.

IN is an IDX file, plain or gzipped; a folder of pictures; or a parquet file of pictures. IDX
and parquet files are written back as plain IDX files, folders as folders of PNG files.
"""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from mnist_transformer.data import idx, parquet
from mnist_transformer.utils.files import files_below, write_atomic
from mnist_transformer.utils.images import grid, opened, save_png

Values = NDArray[np.uint8]
Names = tuple[str, ...]
Shape = tuple[int, int, int]  # (C, H, W)


def read(path: Path, shape: Shape) -> tuple[Values, Names]:
    """The values of images, with a file's own axes; and the names of a folder's pictures.

    Raises ValueError for other kinds of file, and for pictures that are not of this shape.
    """
    if path.is_dir():
        return _read_folder(path, shape)
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise ValueError(f"{path} is not a file, expected an IDX file, a folder or a parquet file")
    return parquet.read([path])[0] if path.suffix == ".parquet" else idx.read(path), ()


def write(out: Path, values: Values, names: Names) -> None:
    """Write the values to an IDX file, or images (N, C, H, W) to pictures in a new folder."""
    if not names:
        write_atomic(out, idx.header(values.shape) + values.tobytes())
        return
    if wrong := [x for x in names if not (out / x).resolve().is_relative_to(out.resolve())]:
        raise ValueError(f"a picture's name is {wrong[0]!r}, expected a path inside {out}")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name[-50:]}.") as temporary:
        folder = Path(temporary) / out.name  # so that a kill never leaves half of one
        for image, name in zip(from_numpy(values), names, strict=True):
            save_png(grid(image[None], 1), folder / name)
        folder.rename(out)


def to_images(values: Values, shape: Shape) -> Tensor:
    """Values N x H x W, N x C x H x W or N x H x W x C as images (N, C, H, W)."""
    channels, height, width = shape
    if (values.shape[1:] == (height, width) and channels == 1) or values.shape[1:] == shape:
        return from_numpy(values.reshape(len(values), *shape).copy())
    if values.shape[1:] == (height, width, channels):
        return from_numpy(values.transpose(0, 3, 1, 2).copy())
    found, expected = ("x".join(map(str, x)) for x in (values.shape[1:], shape))
    raise ValueError(f"the images are {found or 'labels'}, expected {expected} for this model")


def to_values(images: Tensor, axes: tuple[int, ...]) -> Values:
    """Undo ``to_images``."""
    is_last = axes[1:] != images.shape[1:] and len(axes) == 4
    values = images.permute(0, 2, 3, 1) if is_last else images
    return values.reshape(axes).numpy()


def _read_folder(folder: Path, shape: Shape) -> tuple[Values, Names]:
    channels, height, width = shape
    kind = ("L" if channels == 1 else "RGB"), (width, height), 1
    paths = files_below(folder)
    values = np.empty((len(paths), height, width, channels), np.uint8)
    for value, path in zip(values, map(folder.joinpath, paths), strict=True):
        with opened(path) as picture:
            picture.load()
            found = picture.mode, picture.size, getattr(picture, "n_frames", 1)
        if found != kind:
            raise ValueError(f"{path} has mode, size and frames {found}, expected {kind}")
        value[:] = np.asarray(picture).reshape(value.shape)
    names = tuple(path.with_suffix(".png").as_posix() for path in paths)
    if len(set(names)) < max(1, len(names)):
        expected = "expected one or more, whose names differ in more than their suffixes"
        raise ValueError(f"{folder} has {len(names)} pictures, {expected}")
    return values.transpose(0, 3, 1, 2), names
