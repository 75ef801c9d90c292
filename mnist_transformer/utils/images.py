"""Pictures of images: grids, PNG and GIF files.

Shapes: B images, C channels (1 grey, 3 colour), H x W pixels.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, PngImagePlugin

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

SOFTWARE = "mnist-transformer"  # written into every file, so that our own are known again
LONG_SIDE = 640  # pixels that a small picture is scaled up towards in a file
MAX_SCALE = 10
MAX_FRAMES = 60
FRAME_MS, LAST_FRAME_MS = 60, 2000


def grid(images: "Tensor", columns: int, gap: int = 0) -> Image.Image:
    """Images uint8 (B, C, H, W) row by row in one picture, ``gap`` black pixels between them.

    Raises:
        ValueError: no images, another shape or type, or fewer than one column.
    """
    fits = images.ndim == 4 and images.shape[1] in (1, 3) and len(images)
    if not fits or str(images.dtype) != "torch.uint8":
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}, "
            "expected torch.uint8 of shape (B, C, H, W) with B of 1 or more and C of 1 or 3"
        )
    if columns < 1 or gap < 0:
        raise ValueError(f"got {columns} columns and a gap of {gap}, expected 1 and 0 or more")
    num, channels, height, width = images.shape
    columns = min(columns, num)
    rows = -(-num // columns)
    width, height = width + gap, height + gap
    size = (columns * width - gap, rows * height - gap)
    picture = Image.new("L" if channels == 1 else "RGB", size)
    for index, image_HWC in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        row, column = divmod(index, columns)
        tile = Image.fromarray(image_HWC[..., 0] if channels == 1 else image_HWC)
        picture.paste(tile, (column * width, row * height))
    return picture


def columns_for(num_classes: int, times: int) -> int:
    """Columns of ``grid``: several classes stand in a row; one of them many times in a square."""
    return num_classes if num_classes > 1 else math.isqrt(times - 1) + 1


def figure_png(figure: "Figure") -> bytes:
    """A plot as a PNG file's content, drawn without pyplot: no window and no globals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def enlarge(picture: Image.Image, scale: int | None = None) -> Image.Image:
    """Every pixel as a square of ``scale`` pixels; by default enough to see a digit well."""
    scale = scale or max(1, min(MAX_SCALE, LONG_SIDE // max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_png(picture: Image.Image, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a PNG file, making its folder; notes become text fields. Raises OSError."""
    info = PngImagePlugin.PngInfo()
    for key, value in {"Software": SOFTWARE, **(notes or {})}.items():
        # Half of a surrogate pair, as a terminal may send it, is no character.
        info.add_itxt(key, value.encode(errors="replace").decode())
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=info, optimize=True)
    _write(path, content)


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Write frames of one size as an endless GIF that rests on the last one; raises OSError.

    Of many frames an even selection is shown, the first and the last among them.
    """
    shown = min(len(frames), MAX_FRAMES)
    step = (len(frames) - 1) / max(1, shown - 1)
    chosen = [frames[len(frames) - 1 - round(k * step)] for k in reversed(range(shown))]
    content = io.BytesIO()
    times = [FRAME_MS] * (shown - 1) + [LAST_FRAME_MS]
    options = {"append_images": chosen[1:], "duration": times, "comment": SOFTWARE.encode()}
    chosen[0].save(content, "GIF", save_all=True, loop=0, **options)
    _write(path, content)


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that ``save_png`` or ``save_gif`` wrote."""
    try:
        with Image.open(path) as picture:
            mark = picture.info.get("Software", picture.info.get("comment"))
    except OSError:  # such as no picture
        return False
    return mark in (SOFTWARE, SOFTWARE.encode())


def _write(path: Path, content: io.BytesIO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error
