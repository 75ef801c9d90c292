"""compress."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import Model
from mnist_transformer.utils.terminal import complain, say, stages


def compress(
    file: Annotated[Positional[Path], arg(metavar="IN")],
    out: Path,
    model: Model = "mnist-scan",
) -> None:
    """Compress images without a loss, by the probabilities that a model gives them.

    What was written is decompressed and compared before it is saved. It is as sure as the machine:
    another version of torch, or another processor, may compute other probabilities.

    Args:
        file: An IDX file, plain or gzipped (decompress writes it plain); a folder of pictures
            (decompress writes PNG files); or a parquet file of CIFAR-10 (decompress writes an IDX
            file of its pictures).
        out: The file to write.
    """
    import numpy as np

    from mnist_transformer.data import raw
    from mnist_transformer.models import codec
    from mnist_transformer.utils.files import write_atomic

    if out.exists() and not (out.is_file() and out.read_bytes().startswith(codec.MAGIC)):
        raise ValueError(f"{out} exists and compress did not write it: name another with --out")
    values, names = raw.read(file, codec.shape_of(model))
    with stages() as report:
        content = codec.encode(values, names, model, report)
        again = codec.decode(content, str(out), report, complain, model)
    if not np.array_equal(again[0], values) or again[1] != names:
        raise ValueError(f"{file} does not come out of its own code: nothing was saved")
    write_atomic(out, content)
    sizes = f"{values.size:,} bytes of pixels as {len(content):,}"
    rate = f", {8 * len(content) / values.size:.3f} bits/dim" if values.size else ""
    say(f"saved {out}: {len(values):,} images, {sizes}{rate}")
