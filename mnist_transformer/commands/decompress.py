"""decompress."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.utils.terminal import complain, say, stages


def decompress(
    file: Annotated[Positional[Path], arg(metavar="FILE")], out: Path, model: str | None = None
) -> None:
    """Write the images of a file that compress wrote. A wrong pixel is an error.

    Args:
        out: The IDX file to write, or of pictures their folder. It must not exist.
        model: The model that compress used, where the file's name for it does not lead to it.
    """
    if out.exists():
        raise ValueError(f"{out} exists: name another with --out")
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a file, expected one that compress wrote")
    from mnist_transformer.data import raw
    from mnist_transformer.models import codec

    with stages() as report:
        values, names = codec.decode(file.read_bytes(), str(file), report, complain, model)
    raw.write(out, values, names)
    say(f"saved {out}: {len(values):,} images")
