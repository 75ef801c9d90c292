"""scans build and scans verify."""

from pathlib import Path
from typing import Annotated, TypeAlias

from tyro.conf import arg

from mnist_transformer.utils.terminal import say, stages

_FILES = (
    "The folder with MNIST's four files; otherwise the one that MNIST_TRANSFORMER_DATA names, "
    "else a cache that a download fills."
)
Files: TypeAlias = Annotated[Path | None, arg(help=_FILES)]


def build(data: Files = None, out: Path = Path("runs/scans")) -> None:
    """Recover the scans of all of MNIST from its images; this takes hours.

    After an interruption the same command resumes.

    Args:
        out: The folder for the parts, and for mnist.scans in the end.
    """
    import torch

    from mnist_transformer.data import mnist, scan_file, scan_parts
    from mnist_transformer.utils.files import write_atomic

    train, test = mnist.read(data)
    images, labels = torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels])
    with stages() as report:
        sides, ink = scan_parts.recover(images, out, report)
        scans = scan_file.reproducing(images, labels, sides, ink)
        ink = scan_parts.choose(scans, len(train) - mnist.NUM_VAL, out, report)
    scans = scan_file.reproducing(images, labels, scans.sides, ink)
    path = out / "mnist.scans"
    write_atomic(path, scan_file.pack(scans))
    count = len(scans) - len(scans.leftovers)
    say(f"saved {path}: {count:,} of {len(scans):,} images as scans")


def verify(data: Files = None) -> None:
    """Compare the images that MNIST's program makes from the package's scans with MNIST's files."""
    from mnist_transformer.data import mnist, scan_file

    scans = scan_file.load_scans()
    images, start, wrong = scans.images, 0, 0
    line = "{:<10}{:>8}{:>12}{:>17}{:>11}"
    say(line.format("split", "images", "from scans", "kept as they are", "differing"))
    for name, split in zip(("training", "test"), mnist.read(data), strict=True):
        part = slice(start, start + len(split))
        differ = (images[part] != split.images).flatten(1).any(1)
        differ |= scans.labels[part] != split.labels
        kept, differing = int((scans.sides[part] == 0).sum()), int(differ.sum())
        counts = len(split), len(split) - kept, kept, differing
        say(line.format(name, *(f"{count:,}" for count in counts)))
        start, wrong = part.stop, wrong + differing
    if wrong:
        raise ValueError(f"{wrong:,} images or their labels differ from MNIST's, expected none")
