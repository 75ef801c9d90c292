"""An ablation of the old flagship's tricks, at equal time.

    python -m experiments.patch_tricks

``mnist-patch`` (4x4 patches) tells its network more than pixels: the law of MNIST's grey levels,
the palette of levels drawn so far (with a gate that copies from it), the corner of the ink and
the pixels of the previous patch. Every arm leaves some out, in training and in drawing, and is
trained for as long as the others. The clock is the process's CPU time on one core, so that other
work on the machine does not shorten an arm's training.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch as substitute

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.common import Quality, run_cell, start
from mnist_transformer.data import load_dataset
from mnist_transformer.models.patch_law import model as patch_module
from mnist_transformer.models.patch_law.head import PixelHead
from mnist_transformer.models.patch_law.model import Patch
from mnist_transformer.networks.transformer import rms_norm
from mnist_transformer.recipes import RECIPES

ARMS = {
    "nothing": (),
    "law": ("law",),
    "law, palette, copy": ("law", "palette"),
    "law, corner": ("law", "corner"),
    "law, previous": ("law", "previous"),
    "law, palette, copy, corner, previous": ("law", "palette", "corner", "previous"),
}


def main(
    data: Path | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    arms: tuple[str, ...] = tuple(ARMS),
    max_seconds: float = 540.0,
    num_samples: int = 1000,
) -> None:
    """Train and measure what the ledger does not have yet.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        arms: What is left out.
        max_seconds: CPU seconds that each model is trained.
        num_samples: Digits to draw from each.
    """
    torch.set_num_threads(1)
    dataset = load_dataset("mnist", data)
    quality = Quality(dataset, num_samples)
    flagship = RECIPES["mnist-patch-speedrun"]
    for seed in seeds:
        for arm in arms:
            model = replace(
                flagship.model, law="law" not in ARMS[arm], corner="corner" not in ARMS[arm]
            )
            with left_out(ARMS[arm]):
                run_cell(
                    "patch-tricks",
                    {"without": arm, "CPU seconds": max_seconds},
                    replace(flagship, name="trial", model=model, max_seconds=max_seconds),
                    dataset,
                    seed,
                    quality.drawn,
                    clock=time.process_time,
                )


@contextmanager
def left_out(tricks: tuple[str, ...]) -> Iterator[None]:
    """Palette, copy and previous patch are left out of patch models while this lasts."""
    no_palette = "palette" in tricks

    def tokens(
        self: Patch, before_NS: Tensor, previous_NI: Tensor, palette_NV: Tensor, offset_N2: Tensor
    ) -> Tensor:
        x_ND = self.before(self.around.embed(before_NS))
        if not no_palette:
            x_ND = x_ND + self.palette(palette_NV)
        if "previous" not in tricks:
            x_ND = x_ND + self.previous(self.around.embed(previous_NI))
        return x_ND if self.corner is None else x_ND + self.corner(offset_N2)

    def no_palettes(own_NI: Tensor, num_inked_B: Tensor, num_levels: int) -> Tensor:
        return torch.zeros(len(own_NI), 1)

    def readout(self: PixelHead) -> tuple[Tensor, Tensor]:
        return self.output.weight, self.output.bias

    def logits(
        self: PixelHead,
        x: Tensor,
        palette: Tensor,
        law: Tensor | None,
        readout: tuple[Tensor, Tensor],
    ) -> Tensor:
        assert law is None
        for mlp in self.mlps:
            x = x + mlp(rms_norm(x))
        return F.linear(rms_norm(x), *readout)

    with ExitStack() as stack:
        stack.enter_context(substitute.object(Patch, "tokens", tokens))
        if no_palette:
            stack.enter_context(substitute.object(patch_module, "_palettes", no_palettes))
            stack.enter_context(substitute.object(PixelHead, "readout", readout))
            stack.enter_context(substitute.object(PixelHead, "logits", logits))
        yield


if __name__ == "__main__":
    start(main, __doc__)
