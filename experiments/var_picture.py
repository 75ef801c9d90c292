"""How VAR works, in one picture: results/var/how.png.

    python -m experiments.var_picture --model mnist-var

A digit that the model draws is encoded, and each scale is shown: the codes it adds, as colours,
and the picture so far. Below is the attention mask: each row is a token, and the dark cells are
the tokens that it attends to, those of all scales up to its own.
"""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.common import save_figure, start
from mnist_transformer.evaluation import ledger
from mnist_transformer.models import loading


def main(model: str = "mnist-var", digit: int = 3, seed: int = 0, out: Path | None = None) -> None:
    """Draw the picture.

    Args:
        model: A VAR by scales: shipped, a checkpoint or a training run's folder.
        digit: The digit that the picture shows.
        out: The PNG file to write; otherwise results/var/how.png.
    """
    loaded = loading.load(model, "cpu")
    if getattr(loaded, "raster", True):
        raise ValueError(f"{model} is not a model that draws scale by scale, expected one")
    out = out or ledger.results_folder() / "var" / "how.png"
    save_figure(picture(loaded, digit, seed), out)


def picture(model: Any, digit: int, seed: int) -> Figure:
    """Codes and canvases of a drawn digit, scale by scale, and the mask of attention."""
    tokenizer, scales = model.tokenizer, model.config.tokenizer.scales
    with torch.inference_mode():
        codes_BT = tokenizer.encode(model.sample([digit], [seed]))
        canvases = [tokenizer.render(total)[0, 0] for total in tokenizer.totals(codes_BT)]
    figure = Figure(figsize=(2.2 * len(scales), 8.5), layout="constrained")
    grid = figure.add_gridspec(3, len(scales), height_ratios=[1, 1, 2])
    for column, (scale, ids_BS) in enumerate(
        zip(scales, tokenizer.by_scale(codes_BT), strict=True)
    ):
        axes = figure.add_subplot(grid[0, column])
        largest = model.config.tokenizer.codebook_size - 1
        axes.imshow(ids_BS.view(scale, scale).numpy(), cmap="nipy_spectral", vmin=0, vmax=largest)
        count = f"{scale * scale} codes" if scale > 1 else "1 code"
        axes.set_title(f"step {column + 1}: {count}" + (" at once" if scale > 1 else ""))
        axes.set_axis_off()
        axes = figure.add_subplot(grid[1, column])
        axes.imshow(canvases[column].numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title("decoded so far")
        axes.set_axis_off()
    axes = figure.add_subplot(grid[2, :])
    axes.imshow(model.mask_TT.numpy(), cmap="Blues", vmin=-0.3, vmax=1.5)
    middles = [(span.start + span.stop - 1) / 2 for span in model.spans]
    names = [f"{scale}x{scale}" for scale in scales]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.set(xlabel="is seen", ylabel="token of scale")
    for span in model.spans[1:]:
        axes.axhline(span.start - 0.5, color="white", linewidth=1)
        axes.axvline(span.start - 0.5, color="white", linewidth=1)
    return figure


if __name__ == "__main__":
    start(main, __doc__)
