"""The same seeds in batches of several sizes, with other threads and other kernels.

    python -m tools.hard.seeds MODEL PATH MOST

draws in this process, whose kernels ATEN_CPU_CAPABILITY chose when it started, and writes the
images of each setting: batches of up to MOST, or only the base if MOST is not given.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from mnist_transformer.evaluation.protocol import draw_balanced
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.loading import load, load_model, shipped
from mnist_transformer.options import PLAIN
from tools.hard import Figures, Lines, python

NATIVE = ""
KERNELS = (NATIVE, "avx2", "default")
THREADS = (2, 8)  # beside the base's one
BATCH, FEW = 16, 6  # images of the base, and in batches of the sizes below
SMALL = (1, 2, 3)


def draw(model: GenerativeModel, batch_size: int, num_images: int) -> np.ndarray:
    """The images of the first seeds, class after class."""
    return draw_balanced(model, num_images, 0, PLAIN, batch_size=batch_size)[0].numpy()


def main(name: str, path: str, most: int = 0) -> None:
    model = load(name, "cpu")
    torch.set_num_threads(1)
    found = {"base": draw(model, BATCH, BATCH)}
    if most:
        found |= {f"batch {size}": draw(model, size, FEW) for size in SMALL}
        found[f"batch {most}"] = draw(model, most, most)
        for number in THREADS:
            torch.set_num_threads(number)
            found[f"threads {number}"] = draw(model, BATCH, BATCH)
    np.savez(path, allow_pickle=False, **found)


def compare(base: np.ndarray, others: Iterable[np.ndarray], varied: str) -> Figures:
    """How many images differ from the base's, and by how much."""
    num_images = num_other = largest = 0
    for other in others:
        both = min(len(base), len(other))
        apart = abs(base[:both].astype(int) - other[:both])
        num_images += both
        num_other += int(apart.any((1, 2, 3)).sum())
        largest = max(largest, int(apart.max()))
    return {
        f"{varied}: images": num_images,
        f"{varied}: other bytes": num_other,
        f"{varied}: levels": largest,
    }


def seeds(names: Sequence[str], most: int, folder: Path) -> Lines:
    """Draw with models, by default all shipped ones that draw, in every setting.

    The base is a batch of 16 on one thread with this machine's own kernels. The others differ
    from it in one thing: batches of 1, 2, 3 and ``most``, 2 and 8 threads, or other kernels.
    """
    everything = (x for x in shipped() if isinstance(load_model(x), GenerativeModel))
    for name in names or everything:
        drawn: dict[str, np.ndarray] = {}
        for kernels in KERNELS:
            path = folder / f"{name}-{kernels}.npz"
            command, environment = python("-m", "tools.hard.seeds", name, str(path))
            environment.pop("ATEN_CPU_CAPABILITY", None)
            if kernels == NATIVE:
                command.append(str(most))
            else:
                environment["ATEN_CPU_CAPABILITY"] = kernels
            subprocess.run(command, env=environment, check=True)
            with np.load(path) as found:
                other = {f"kernels {kernels}": found["base"]}
                drawn |= dict(found) if kernels == NATIVE else other
        figures: Figures = {}
        for varied in ("batch", "threads", "kernels"):
            others = (images for setting, images in drawn.items() if setting.startswith(varied))
            figures |= compare(drawn["base"], others, varied)
        yield {"model": name}, figures


if __name__ == "__main__":
    name, path, *most = sys.argv[1:]
    main(name, path, *map(int, most))
