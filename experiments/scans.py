"""How well do simple models know MNIST's scans, and what do the scans look like?

    python -m experiments.scans

Two baselines for ``mnist-scan``, on the same test images and with the same bound: counts of
contexts, without a network; and a small causal MLP, trained for two minutes. Both know the side m
of a scan and the pixels drawn before a pixel, but not the class.
"""

import math
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.common import Figures, is_done, record, save_plot, start
from mnist_transformer.data import Dataset, load_dataset, scan_search
from mnist_transformer.data.mnist import SCANS
from mnist_transformer.data.scan_file import load_scans
from mnist_transformer.data.scans import (
    BOX,
    IMAGE,
    SIDES,
    corner,
    square,
    to_boxes,
    to_images,
    weights,
)
from mnist_transformer.models.base import in_batches
from mnist_transformer.recipes import RECIPES

CANVAS = SCANS.shape[1]
ROWS = 11  # of context for the MLP: rows above, and columns to either side
BATCH = 250
CHANGES = (
    "none",
    "0.99 as float32",
    "rounded up below 128, down above",
    "summed by column, then by row",
    "summed in float64",
)
CAUSES = (
    "the box reaches beyond the image",
    "the brightest pixel lacks ink",
    "ink has a share too small for a level",
    "not known",
)
Scanned = tuple[Tensor, Tensor]
"""Scans uint8 (B, S, S) and their sides (B,)."""


def main(
    data: Path | None = None,
    templates: tuple[int, ...] = (16, 20),
    max_seconds: float = 120.0,
    again: bool = False,
) -> None:
    """Count and measure what the ledger does not have yet, then draw the picture.

    Args:
        data: The folder with MNIST's four files; otherwise MNIST comes with the package.
        templates: Numbers of nearby pixels that make a context.
        max_seconds: CPU seconds that the MLP is trained.
        again: Also measure what the ledger has, as after other scans were found or chosen.
    """
    dataset = load_dataset("mnist", data)
    count_sides(again)
    count_causes(again)
    for change in CHANGES:
        if not is_done("scans-program", {"change": change}, again=again):
            record("scans-program", {"change": change}, differing(change))
    for size in templates:
        if not is_done("scans", {"model": "context counts", "pixels": size}, again=again):
            bits_of = counts(dataset, size)
            figures: Figures = {
                "validation bits/dim": bound(dataset, "val", bits_of),
                "test bits/dim": bound(dataset, "test", bits_of),
            }
            record("scans", {"model": "context counts", "pixels": size}, figures, exact=False)
    size = ROWS * (2 * ROWS + 1) + ROWS
    if not is_done("scans", {"model": "causal MLP", "pixels": size}, again=again):
        torch.manual_seed(0)
        mlp = train_mlp(dataset, max_seconds)

        def cost(scans: Tensor, sides: Tensor) -> Tensor:
            with torch.no_grad():
                return F.softplus(mlp(scans.float()) * (1 - 2 * scans.float()))

        figures = {
            "validation bits/dim": bound(dataset, "val", cost),
            "test bits/dim": bound(dataset, "test", cost),
        }
        parameters = sum(p.numel() for p in mlp.parameters())
        settings = {"model": "causal MLP", "pixels": size}
        record("scans", settings, figures, exact=False, parameters=parameters, seconds=max_seconds)
    save_plot(plot(dataset), "scans")


def count_sides(again: bool) -> None:
    """How many images have a scan, by the side of it."""
    sides, num_train = load_scans().sides, 60_000
    bins = [(0, 0), *((low, low + 9) for low in range(20, 90, 10)), (90, SIDES.stop - 1)]
    for low, high in bins:
        name = f"{low} to {high}" if high else "no scan found"
        if not is_done("scans-found", {"side m": name}, again=again):
            within = (sides >= low) & (sides <= high)
            split = {"training images": within[:num_train], "test images": within[num_train:]}
            figures: Figures = {head: float(part.sum()) for head, part in split.items()}
            figures["share of all images, %"] = 100 * within.double().mean().item()
            record("scans-found", {"side m": name}, figures)


def count_causes(again: bool) -> None:
    """How many scans of the package are not usual ones, and why."""
    if is_done("scans-rare", {"cause": CAUSES[0]}, again=again):
        return
    scans = load_scans()
    causes = [cause(scans.square(image)) for image in range(len(scans))]
    for name in CAUSES:
        record("scans-rare", {"cause": name}, {"images": float(causes.count(name))})


def cause(ink: np.ndarray) -> str | None:
    """Why the usual candidates lack this scan (m, m), (0, 0) if missing; None if they have it."""
    if not len(ink):
        return CAUSES[-1]
    shares = weights(len(ink))
    box = to_boxes(torch.from_numpy(ink).byte()[None], torch.tensor([len(ink)]))
    if any(not 0 <= int(place) <= IMAGE - BOX for place in corner(box)):
        return CAUSES[0]
    area, full = shares @ ink @ shares.T, shares.sum(1)
    brightest = np.unravel_index(area.argmax(), area.shape)
    if full[brightest[0]] * full[brightest[1]] - area[brightest] > scan_search.LEEWAY:
        return CAUSES[1]
    return CAUSES[2] if ((area > 0) & (box[0].numpy() == 0)).any() else None


def differing(change: str) -> Figures:
    """How many of MNIST's images the program no longer gives after a change to one detail."""
    archive, wrong, total = load_scans(), 0, 0
    for side in archive.sides.unique()[1:].tolist():  # the first is 0, for no scan
        for index in (archive.sides == side).nonzero()[:, 0].split(BATCH):
            scans, sides = archive.canvas(index, side), archive.sides[index]
            boxes = changed_program(scans, side, change)
            wrong += int((boxes != to_boxes(scans, sides)).flatten(1).any(1).sum())
            total += len(index)
    return {"images that differ": float(wrong), "share, %": 100 * wrong / total}


def changed_program(scans: Tensor, side: int, change: str) -> Tensor:
    """``to_boxes`` with one of ``CHANGES``, for scans (B, m, m) of one side."""
    shares = torch.from_numpy(weights(side))
    if change == "0.99 as float32":
        shares = torch.from_numpy(weights(side, np.float32))
    ink = scans.float()
    if change == "summed in float64":
        area = (shares.double() @ ink.double() @ shares.double().T).float()
    else:
        used = int((shares > 0).sum(1).max())
        # The scanned rows of each box row in their order; shares of 0 at the end change nothing.
        rows = (shares == 0).int().sort(stable=True, dim=1).indices[:, :used]
        part, area = shares.gather(1, rows), ink.new_zeros(len(ink), BOX, BOX)
        for first, second in product(range(used), range(used)):
            row, column = (second, first) if "by column" in change else (first, second)
            taken = ink[:, rows[:, row, None], rows[None, :, column]]
            area += taken * (part[:, row, None] * part[None, :, column])
    most = area.amax((1, 2), keepdim=True)
    level = area * (torch.full_like(most, 255) / most)
    if change.startswith("rounded"):
        return torch.where(level < 128, level.ceil(), level.floor()).byte()
    return ((level - 128).trunc() + 128).byte()


def batches(dataset: Dataset, split: str, order: Tensor | None = None) -> Iterator[Scanned]:
    """All scans of a split that fit the canvas, in batches."""
    archive = load_scans()
    index = archive.find(getattr(dataset, split).images)
    index = index[index >= 0]
    index = index[archive.sides[index] <= CANVAS]
    for part in (index if order is None else index[order[order < len(index)]]).split(BATCH):
        yield archive.canvas(part, CANVAS), archive.sides[part]


def inside(sides: Tensor) -> Tensor:
    """Pixels of the scans' squares, bool (B, S, S)."""
    row = torch.arange(CANVAS)
    start = ((CANVAS - sides) // 2)[:, None]
    within = (row >= start) & (row < start + sides[:, None])
    return within[:, :, None] & within[:, None]


def bound(dataset: Dataset, split: str, cost: Callable[[Tensor, Tensor], Tensor]) -> float:
    """A bound on a split's bits/dim: ``cost``'s nats (B, S, S) of the pixels, side and escape.

    The sides' frequencies are those of the training scans. An image without a scan is coded by
    the model, and at the probability, that ``mnist-scan`` uses for it.
    """
    config, part = RECIPES["mnist-scan"].model, getattr(dataset, split)
    known = torch.cat([sides for _, sides in batches(dataset, "train")])
    counted = torch.bincount(known, minlength=SIDES.stop)[SIDES.start :] + 1.0
    side_nats = -(counted / counted.sum()).log()
    nats, found = 0.0, 0
    for scans, sides in batches(dataset, split):
        nats += float((cost(scans, sides) * inside(sides)).double().sum())
        nats += float(side_nats[sides - SIDES.start].sum())
        found += len(scans)
    archive = load_scans()
    index = archive.find(part.images)
    rest = (index < 0) | (archive.sides[index.clamp(min=0)] > CANVAS)
    nats -= found * math.log(1 - config.escape_share) + int(rest.sum()) * math.log(
        config.escape_share
    )
    escape = config.build().escape
    if rest.any():
        nats += float(in_batches(escape, escape.nll, part.images[rest], part.labels[rest]).sum())
    return nats / (math.log(2) * part.images.numel())


# --- the two baselines -----------------------------------------------------------------------


def counts(dataset: Dataset, num_pixels: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Nats by the training scans' frequencies of ink, given the nearest pixels drawn before."""
    offsets = [(y, x) for y in range(-6, 1) for x in range(-6, 7) if y < 0 or x < 0]
    template = sorted(offsets, key=lambda place: (place[0] ** 2 + place[1] ** 2, place))
    template = template[:num_pixels]

    def context(scans: Tensor) -> Tensor:
        wide, code = F.pad(scans.int(), (6, 6, 6, 0)), torch.zeros(scans.shape, dtype=torch.int)
        for y, x in template:
            code = 2 * code + wide[:, 6 + y : 6 + y + CANVAS, 6 + x : 6 + x + CANVAS]
        return code

    seen = torch.zeros(2 << num_pixels, dtype=torch.int64)
    for scans, sides in batches(dataset, "train"):
        pairs = (2 * context(scans) + scans)[inside(sides)]
        seen += torch.bincount(pairs, minlength=len(seen))
    seen_C2 = seen.view(-1, 2).double() + 0.4  # near Krichevsky and Trofimov's half a count
    nats_C2 = -(seen_C2 / seen_C2.sum(1, keepdim=True)).log()
    return lambda scans, sides: nats_C2[context(scans), scans.long()]


class CausalMLP(nn.Module):
    """Logits of ink from the pixels drawn before in ``ROWS`` rows, by the same MLP everywhere."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        size = 2 * ROWS + 1
        self.window = nn.Conv2d(1, width, (ROWS + 1, size), padding=0)
        mask = torch.ones(ROWS + 1, size)
        mask[-1, ROWS:] = 0
        self.register_buffer("mask", mask)
        self.hidden = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth - 1))
        self.output = nn.Conv2d(width, 1, 1)

    def forward(self, scans: Tensor) -> Tensor:
        """Scans float32 (B, S, S) to logits (B, S, S)."""
        wide = F.pad(scans[:, None], (ROWS, ROWS, ROWS, 0))
        x = F.conv2d(wide, self.window.weight * self.mask, self.window.bias).relu()
        for hidden in self.hidden:
            x = hidden(x).relu()
        return self.output(x)[:, 0]


def train_mlp(dataset: Dataset, max_seconds: float) -> CausalMLP:
    """Fit the MLP to the training scans, at a rate that falls to zero when time is up."""
    mlp = CausalMLP()
    optimizer = torch.optim.Adam(mlp.parameters(), lr=3e-3)
    began, epoch = time.process_time(), 0  # other work on the machine does not shorten it
    while True:
        order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(epoch))
        for scans, sides in batches(dataset, "train", order):
            for part, side in zip(scans.split(25), sides.split(25), strict=True):
                left = 1 - (time.process_time() - began) / max_seconds
                if left <= 0:
                    return mlp.eval()
                optimizer.param_groups[0]["lr"] = 3e-3 * min(1, 2 * left)
                nats = F.binary_cross_entropy_with_logits(
                    mlp(part.float()), part.float(), reduction="none"
                )
                (nats * inside(side)).sum().div(len(part) * 784).backward()
                optimizer.step()
                optimizer.zero_grad()
        epoch += 1


# --- the picture -----------------------------------------------------------------------------


def plot(dataset: Dataset, per_row: int = 10) -> Figure:
    """Test images, their scans, the images that the program makes from them, the differences."""
    archive = load_scans()
    images = dataset.test.spaced(per_row * 4).images
    index = archive.find(images)
    chosen = (index >= 0).nonzero()[:per_row, 0]
    scans, sides = archive.canvas(index[chosen], CANVAS), archive.sides[index[chosen]]
    made = to_images(scans, sides)
    figure = Figure(figsize=(per_row, 4.4), layout="constrained")
    panels = figure.subplots(4, per_row)
    for column, number in enumerate(chosen.tolist()):
        middle = square(int(sides[column]), CANVAS)
        difference = (made[column, 0].int() - images[number, 0].int()).abs()
        pictures = images[number, 0], scans[column, middle, middle], made[column, 0], difference
        for axes, picture, top in zip(panels[:, column], pictures, (255, 1, 255, 255), strict=True):
            axes.imshow(np.asarray(picture), cmap="gray_r", vmin=0, vmax=top)
            axes.set(xticks=[], yticks=[])
    names = "image", "scan", "program(scan)", "difference"
    for axes, name in zip(panels[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=8)
    for axes, side in zip(panels[1], sides.tolist(), strict=True):
        axes.set_xlabel(f"m = {side}", fontsize=7)
    return figure


if __name__ == "__main__":
    start(main, __doc__)
