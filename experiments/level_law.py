"""What does the law of MNIST's grey levels know, and what does it bring?

    python -m experiments.level_law

First, without any training: how soon is it known from a validation image's levels how large the
digit was scanned, and how many bits does a grey level cost then? Second: the flagship is trained
for equally long with the law and without.
"""

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.common import Figures, Quality, is_done, record, run_cell, save_plot, start
from mnist_transformer.data import load_dataset
from mnist_transformer.models.patch_law.model import Patch
from mnist_transformer.recipes import RECIPES

SURE = 0.99
WHITE = 240  # what is below and not black is grey


def main(
    data: Path | None = None,
    num_images: int = 1000,
    seeds: tuple[int, ...] = (0, 1, 2),
    max_seconds: float = 540.0,
    num_samples: int = 1000,
    again: bool = False,
) -> None:
    """Measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        num_images: Validation images that the law alone is looked at with.
        seeds: Of the trainings; none leaves them out.
        max_seconds: How long each model is trained.
        num_samples: Digits to draw from each.
        again: Look at the law alone anew, as after it was changed.
    """
    dataset = load_dataset("mnist", data)
    flagship = RECIPES["mnist-patch-speedrun"]
    model = replace(flagship.model, law=True).build()
    images = dataset.val.spaced(num_images).images
    known = [read(model, image) for image in images.split(1)]
    settings = {"validation images": num_images}
    if not is_done("level-law", settings, again=again):
        record("level-law", settings, figures(known))
    save_plot(plot(model, images, known), "level-law")

    quality = Quality(dataset, num_samples)

    for seed in seeds:
        for law in (True, False):
            run_cell(
                "level-law-training",
                {"law": "with" if law else "without", "seconds": max_seconds},
                replace(
                    flagship,
                    name="trial",
                    model=replace(flagship.model, law=law),
                    max_seconds=max_seconds,
                ),
                dataset,
                seed,
                quality.drawn,
            )


class Known(NamedTuple):
    """What the law knows while it reads one image, patch by patch.

    Args:
        side_M: the values of m.
        chance_NM: how probable each is before each patch with ink.
        bits_G, patch_G: of each grey pixel among the grey levels, and the patch it is in.
    """

    side_M: Tensor
    chance_NM: Tensor
    bits_G: Tensor
    patch_G: Tensor

    @property
    def best(self) -> int:
        """The most probable m before the last patch."""
        return int(self.side_M[self.chance_NM[-1].argmax()])

    @property
    def patches_until_sure(self) -> int | None:
        """How many patches it takes until one m is all but sure, and stays so."""
        unsure_N = (self.chance_NM[:, self.chance_NM[-1].argmax()] < SURE).nonzero()
        count = int(unsure_N[-1]) + 1 if len(unsure_N) else 0
        return None if count == len(self.chance_NM) else count


@torch.no_grad()
def read(model: Patch, image_1: Tensor) -> Known:
    """What ``model``'s law knows of an image uint8 (1, 1, H, W), before each patch with ink."""
    assert model.law is not None
    own_BPI = model.around.values(model.around.pad(image_1))[..., model.around.num_before :]
    inked_BP = (own_BPI > 0).any(-1)
    own_NI, patch_N = own_BPI[inked_BP], inked_BP.nonzero()[:, 1]
    posterior_NH = model.law.log_posteriors(own_NI, patch_N, inked_BP.sum(1))
    law_NIDV = model.law.chances(posterior_NH, patch_N)
    grey_NI = (own_NI > 0) & (own_NI < WHITE)
    among_grey_GV = law_NIDV[grey_NI].mean(1)[:, 1:WHITE].log().log_softmax(1)
    nats_G = -among_grey_GV.gather(1, own_NI[grey_NI][:, None] - 1).squeeze(1)
    bits_G = nats_G / torch.tensor(2.0).log()
    return Known(*model.law.sides(posterior_NH), bits_G, grey_NI.nonzero()[:, 0])


def figures(known: list[Known]) -> Figures:
    """Figures over all images."""
    until = [one.patches_until_sure for one in known]
    told = [count for count in until if count is not None]
    bits = torch.cat([one.bits_G for one in known])
    patch = torch.cat([one.patch_G for one in known])
    return {
        "m is told with 99 %, share of images, %": 100 * len(told) / len(known),
        "after patches, median": median(told) if told else None,
        "bits a grey level, first patch": _mean(bits[patch == 0]),
        "eleventh patch and later": _mean(bits[patch >= 10]),
        "uniform": float(torch.tensor(WHITE - 1.0).log2()),
    }


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None


def plot(model: Patch, images: Tensor, known: list[Known]) -> Figure:
    """An image, what is known of m as it is read, all images' m, and the bits of grey levels."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    (of_image, of_m), (histogram, of_bits) = figure.subplots(2, 2, width_ratios=(1, 2)).tolist()
    shown = max(range(min(50, len(known))), key=lambda i: len(known[i].chance_NM))
    of_image.imshow(images[shown, 0].numpy(), cmap="gray", vmin=0, vmax=255)
    of_image.set_title(f"scanned with m = {known[shown].best}")
    of_image.set_axis_off()
    sides, chance_NM = known[shown].side_M.tolist(), known[shown].chance_NM
    of_m.imshow(
        chance_NM.T.sqrt().numpy(),
        cmap="Blues",
        aspect="auto",
        origin="lower",
        extent=(-0.5, len(chance_NM) - 0.5, sides[0] - 0.5, sides[-1] + 0.5),
    )
    of_m.set(xlabel="patches with ink read", ylabel="m", title="how probable (square root)")
    histogram.hist([one.best for one in known], bins=[s - 0.5 for s in [*sides, sides[-1] + 1]])
    histogram.set(xlabel="m", ylabel="validation images")
    bits = torch.cat([one.bits_G for one in known])
    patch = torch.cat([one.patch_G for one in known])
    numbers = range(min(25, int(patch.max()) + 1))
    of_bits.plot(numbers, [bits[patch == n].mean().item() for n in numbers], "o-")
    of_bits.set(xlabel="patches with ink read", ylabel="bits a grey level, by the law alone")
    of_bits.set_ylim(bottom=0)
    of_bits.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    start(main, __doc__)
