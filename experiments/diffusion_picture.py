"""How diffusion and MAR work, one picture each: docs/diffusion.png and docs/mar.png.

python -m experiments.diffusion_picture
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.common import save_figure, start
from mnist_transformer.data import load_dataset
from mnist_transformer.models.loading import load
from mnist_transformer.networks.diffusion import to_signed
from mnist_transformer.networks.drawing import Noise
from mnist_transformer.networks.patches import join
from mnist_transformer.networks.unmasking import known_counts
from mnist_transformer.options import Sampling

DOCS = Path(__file__).parent.parent / "docs"
NUM_COLUMNS = 6


def main(
    ddpm: str = "mnist-ddpm",
    mar: str = "mnist-mar",
    data: Path | None = None,
    digit: int = 3,
    seed: int = 0,
) -> None:
    """Draw both pictures.

    Args:
        ddpm: A trained model of the family ddpm.
        mar: A trained model of the family mar.
        data: The folder with MNIST's four files; otherwise as for training.
        digit: The digit to show.
        seed: Decides the noise and the drawing.
    """
    test = load_dataset("mnist", data).test
    image = test.images[test.labels == digit][:1]
    figure = diffusion_figure(load(ddpm, "cpu"), image, digit, seed)
    save_figure(figure, DOCS / "diffusion.png")
    save_figure(mar_figure(load(mar, "cpu"), digit, seed), DOCS / "mar.png")


def diffusion_figure(model: Any, image: Tensor, digit: int, seed: int) -> Figure:
    """A digit with more and more noise, what the network makes of each, and a drawing."""
    diffusion, label = model.diffusion, torch.tensor([digit])
    x0, noise = to_signed(image), Noise([seed]).normal(*model.image_shape)
    noisy, clean = [], []
    for t in torch.linspace(0.1, 1, NUM_COLUMNS):
        at = diffusion.levels(t.view(1), x0)
        noisy.append(at.alpha * x0 + at.sigma * noise)
        with torch.inference_mode():
            class_BD = model.classes(label)
            estimate, _ = diffusion.estimate(
                lambda x_t, s, class_BD=class_BD: model.denoise(class_BD, x_t, s),
                noisy[-1],
                t.view(1),
            )
        clean.append(estimate)
    canvases = list(model.steps(label, [seed], Sampling(num_steps=5 * (NUM_COLUMNS - 1))))
    drawn = [noise, *[to_signed(canvas) for canvas in canvases[4::5]]]
    rows = [
        ("training: data and noise, t = 0.1 to 1", noisy),
        ("the network's x0 for each", clean),
        ("drawing, from noise to data", drawn),
    ]
    return _panels(rows)


def mar_figure(model: Any, digit: int, seed: int) -> Figure:
    """Canvases of one drawing, and what each step draws: known, drawn now, still unknown."""
    canvases = list(model.steps([digit], [seed], Sampling(num_steps=NUM_COLUMNS)))
    # The order comes from an image's first random numbers: see ``MAR.sample_steps``.
    order_P = Noise([seed]).uniform(model.num_patches)[0].argsort(stable=True)
    rank_P = torch.empty_like(order_P).scatter(0, order_P, torch.arange(model.num_patches))
    counts = known_counts(torch.zeros(1, model.num_patches, dtype=torch.bool), NUM_COLUMNS)
    parts = []
    for first, last in pairwise(counts):
        shade_P = torch.where(rank_P < first, 1.0, torch.where(rank_P < last, 0.0, -1.0))
        patches = shade_P[None, :, None].expand(-1, -1, model.config.num_patch_pixels)
        parts.append(join(patches, model.config.patch_size))
    rows = [
        ("white: known, grey: drawn in this step", parts),
        ("the canvas after it", [to_signed(canvas) for canvas in canvases]),
    ]
    return _panels(rows)


def _panels(rows: list[tuple[str, list[Tensor]]]) -> Figure:
    """Rows of images (1, 1, H, W) in [-1, 1], each under its title."""
    figure = Figure(figsize=(9, 1.75 * len(rows)), layout="constrained")
    for part, (title, images) in zip(figure.subfigures(len(rows), 1), rows, strict=True):
        part.suptitle(title, fontsize="medium")
        for axes, image in zip(part.subplots(1, len(images)), images, strict=True):
            axes.imshow(image[0, 0], cmap="gray", vmin=-1, vmax=1)
            axes.set_axis_off()
    return figure


if __name__ == "__main__":
    start(main, __doc__)
