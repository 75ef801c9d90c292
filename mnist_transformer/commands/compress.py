"""compress and decompress."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import Model
from mnist_transformer.options import FLAGSHIP
from mnist_transformer.utils.terminal import complain, say, stages


def compress(
    file: Annotated[Positional[Path], arg(metavar="IN")], out: Path, model: Model = FLAGSHIP
) -> None:
    """Compress images losslessly, with the probabilities that a model gives them.

    Before the file is saved, it is decoded and compared. It is for machines like this one:
    another version of torch, or another processor, may compute different probabilities.

    Args:
        file: An IDX file, plain or gzipped (decompress writes it plain), a folder of pictures
            (decompress writes PNG files), or a parquet file of pictures (decompress writes an IDX
            file of its pictures).
        out: The file to write.
    """
    from mnist_transformer.data import raw
    from mnist_transformer.models import codec, loading
    from mnist_transformer.utils.files import check_place, write_atomic

    if out.exists() and not (out.is_file() and out.read_bytes().startswith(codec.MAGIC[:2])):
        raise ValueError(f"{out} exists and compress did not write it: name another with --out")
    shape = loading.companion(loading.find_weights(model), "cpu").image_shape
    values, names = raw.read(file, shape)
    check_place(out)
    with stages() as report:
        content = codec.encode(values, names, model, report)
        again, _ = codec.decode(content, str(out), model, report, complain)
    if (again != values).any():
        raise ValueError(f"{file} does not come out of its own code, nothing was saved")
    write_atomic(out, content)
    sizes = f"{values.size:,} bytes of pixels as {len(content):,}"
    rate = f", {8 * len(content) / values.size:.3f} bits/dim" if values.size else ""
    say(f"saved {out}: {len(values):,} images, {sizes}{rate}")


def decompress(
    file: Annotated[Positional[Path], arg(metavar="FILE")], out: Path, model: str | None = None
) -> None:
    """Write the images of a file that compress wrote. A wrong pixel is an error.

    Args:
        out: The IDX file to write, or for pictures their folder. It must not exist.
        model: The model that compress used, if the name in the file does not lead to it.
    """
    if out.exists():
        raise ValueError(f"{out} exists: name another with --out")
    if file.exists() and not file.is_file():  # reading a pipe would block
        raise ValueError(f"{file} is not a file, expected one that compress wrote")
    from mnist_transformer.data import raw
    from mnist_transformer.models import codec
    from mnist_transformer.utils.files import check_place

    content = file.read_bytes()
    check_place(out)
    with stages() as report:
        values, names = codec.decode(content, str(file), model, report, complain)
    raw.write(out, values, names)
    say(f"saved {out}: {len(values):,} images")
