"""Pictures of images: grids, PNG and GIF files.

Shapes: B images, C channels (1 grey, 3 colour), H x W pixels.
"""

import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from mnist_transformer.utils.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000
SOFTWARE = "mnist-transformer"  # written into every file, so that our own are recognised
# As PNG, GIF and SVG files hold it near their beginning.
MARKS = [x + SOFTWARE.encode() for x in (b"Software\0\0\0\0\0", b"!\xfe\x11", b"<!-- ")]
LONG_SIDE = 640  # pixels; a small picture is saved enlarged to about this
MAX_SCALE = 10
MAX_FRAMES = 60
FRAME_MS, LAST_FRAME_MS = 60, 2000

logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would print some faults


def grid(images: "Tensor", columns: int, gap: int = 0) -> Image.Image:
    """Images uint8 (B, C, H, W) row by row in one picture, ``gap`` black pixels between them.

    No images, another shape or type, or fewer than one column raise ValueError.
    """
    fits = images.ndim == 4 and images.shape[1] in (1, 3) and len(images)
    if not fits or str(images.dtype) != "torch.uint8" or columns < 1:
        got = f"got {columns} columns of images {images.dtype} of shape {tuple(images.shape)}"
        shape = "(B, C, H, W) with B of 1 or more and C of 1 or 3"
        raise ValueError(f"{got}, expected 1 or more of torch.uint8, {shape}")
    num, channels, height, _ = images.shape
    columns = min(columns, num)
    rows = -(-num // columns)
    padding = (0, rows * columns - num), (0, 0), (0, gap), (0, gap)
    tiles = np.pad(images.cpu().numpy(), padding).reshape(rows, columns, channels, height + gap, -1)
    sheet = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * (height + gap), -1, channels)
    sheet = sheet[: len(sheet) - gap, : sheet.shape[1] - gap]
    return Image.fromarray(sheet if channels == 3 else sheet[..., 0])


def columns_for(num_classes: int, times: int) -> int:
    """Columns for ``grid``: one per class, or about a square of a single class."""
    return num_classes if num_classes > 1 else math.isqrt(times - 1) + 1


def figure_png(figure: "Figure") -> bytes:
    """A plot as a PNG file's content, drawn without pyplot: no window and no globals."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def enlarge(picture: Image.Image, scale: int | None = None) -> Image.Image:
    """Every pixel as a square of ``scale`` pixels; by default enough to see a digit well."""
    scale = scale or max(1, min(MAX_SCALE, LONG_SIDE // max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_png(picture: Image.Image, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a PNG file, making its folder; notes become text fields. Raises OSError."""
    info = PngImagePlugin.PngInfo()
    for key, value in {"Software": SOFTWARE, **(notes or {})}.items():
        # Half of a surrogate pair, which a terminal may send, is not a character.
        info.add_itxt(key, value.encode(errors="replace").decode())
    _write(path, picture, "PNG", pnginfo=info, optimize=True)


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Write frames of one size, enlarged, as an endless GIF that rests on the last; raises OSError.

    Many frames are thinned evenly; the first and the last are kept.
    """
    places = np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES))
    first, *rest = [enlarge(frames[round(place)]) for place in places]
    times = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    look = {"save_all": True, "append_images": rest, "duration": times, "loop": 0}
    _write(path, first, "GIF", comment=SOFTWARE.encode(), **look)


def save_scans(scans: "Tensor", columns: int, png: Path, made: str) -> None:
    """Write scans uint8 (B, 1, S, S) of 0 and 1, ink black, to files -scan.png and -scan.svg.

    These suffixes replace the ".png" of ``png``; the PNG notes how the scans were ``made``.
    """
    from contourpy import contour_generator

    sheet = np.asarray(grid(scans, columns))
    picture = Image.fromarray(255 * (1 - sheet))
    save_png(enlarge(picture), png.with_name(f"{png.stem}-scan.png"), {"Description": made})
    # A contour is a closed line of points (x, y) midway between ink and paper.
    lines: Any = contour_generator(z=sheet.astype(float)).lines(0.5)
    outlines = (" ".join(f"{x + 0.5:g},{y + 0.5:g}" for x, y in line) for line in lines)
    path = "".join(f"M{outline}Z" for outline in outlines)
    height, width = sheet.shape
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f'<!-- {SOFTWARE} --><path fill-rule="evenodd" d="{path}"/></svg>\n'
    )
    write_atomic(png.with_name(f"{png.stem}-scan.svg"), svg.encode())


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture file; any error of Pillow, here or in the context, becomes a ValueError.

    An error of the machine stays an OSError.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe would block
        raise ValueError(f"{path} is not a file, expected a PNG or JPEG file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield picture
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has over {MAX_PIXELS:,} pixels, expected fewer") from error
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} is not a picture, expected a PNG or JPEG file") from error
    except Exception as error:  # Pillow raises many kinds
        if getattr(error, "errno", None) is not None or isinstance(error, MemoryError):
            raise
        raise ValueError(f"{path} is damaged: {error or type(error).__name__}") from error


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that this module wrote."""
    if not path.is_file():  # reading a pipe would block
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return any(mark in start for mark in MARKS)


def _write(path: Path, picture: Image.Image, kind: str, **options: Any) -> None:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    write_atomic(path, content.getvalue())
