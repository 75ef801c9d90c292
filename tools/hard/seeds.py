"""The same seeds in batches of several sizes, with other threads and other kernels.

    python -m tools.hard.seeds MODEL PATH

draws in this process, whose kernels ATEN_CPU_CAPABILITY has chosen as it started, and writes the
images of each setting.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.loading import load, load_model, shipped
from tools.hard import Figures, Lines, python

NATIVE = ""
KERNELS = (NATIVE, "avx2", "default")
THREADS = (1, 2, 8)
FEW, BATCH, MANY = 6, 16, 257  # images of the smallest batches, of the base, of the largest
BATCHES = {1: FEW, 2: FEW, 3: FEW, BATCH: BATCH, MANY: MANY}  # batch size: images drawn


def draw(model: GenerativeModel, batch_size: int, num_images: int) -> np.ndarray:
    """The images of the first seeds, class after class."""
    seeds = torch.arange(num_images)
    parts = [
        model.sample(part % model.num_classes, part.tolist()) for part in seeds.split(batch_size)
    ]
    return torch.cat(parts).numpy()


def main(name: str, path: str, *, all_batches: bool) -> None:
    model, found = load(name, "cpu"), {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        for batch_size, num_images in BATCHES.items():
            if batch_size == BATCH or (all_batches and threads == 1):
                found[f"{threads} {batch_size}"] = draw(model, batch_size, num_images)
    np.savez(path, allow_pickle=False, **found)


def compare(base: np.ndarray, others: Iterable[np.ndarray], varied: str) -> Figures:
    """How many images are not those of the base, and by how much."""
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


def seeds(names: Sequence[str], folder: Path) -> Lines:
    """Draw with models, by default all shipped ones that draw, in every setting.

    The base is a batch of 16 on one thread with this machine's own kernels. Batches of other sizes
    are drawn like it; other threads and kernels draw the same batch in all combinations.
    """
    everything = (x for x in shipped() if isinstance(load_model(x), GenerativeModel))
    for name in names or everything:
        drawn: dict[tuple[str, str], np.ndarray] = {}
        for kernels in KERNELS:
            path = folder / f"{name}-{kernels}.npz"
            arguments = ("-m", "tools.hard.seeds", name, str(path), kernels)
            command, environment = python(*arguments)
            environment.pop("ATEN_CPU_CAPABILITY", None)
            if kernels != NATIVE:
                environment["ATEN_CPU_CAPABILITY"] = kernels
            subprocess.run(command, env=environment, check=True)
            with np.load(path) as found:
                drawn |= {(kernels, key): found[key] for key in found.files}
        base = drawn[NATIVE, f"1 {BATCH}"]
        batches = [x for (kind, key), x in drawn.items() if key.split()[1] != str(BATCH)]
        threads = [drawn[NATIVE, f"{number} {BATCH}"] for number in THREADS[1:]]
        others = [
            x for (kind, key), x in drawn.items() if kind != NATIVE and key.split()[1] == str(BATCH)
        ]
        # Of a batch of 257 only those that the base has are compared.
        yield (
            {"model": name},
            compare(base, batches, "batch")
            | compare(base, threads, "threads")
            | compare(base, others, "kernels"),
        )


if __name__ == "__main__":
    name, path, *rest = sys.argv[1:]
    main(name, path, all_batches=rest == [NATIVE])
