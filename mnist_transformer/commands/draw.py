"""draw."""

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands import common
from mnist_transformer.options import PLAIN, Sampling, check_seed
from mnist_transformer.utils.terminal import stages

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_transformer.models.base import GenerativeModel

MAX_BATCH = 256  # images drawn at once


def draw(
    what: Annotated[Positional[str], arg(metavar="WHAT")],
    n: int = 1,
    model: common.Model = "mnist-patch",
    seed: common.Seed = 0,
    how: common.How = PLAIN,
    out: common.Out = None,
    gif: common.Gif = False,
    device: common.Device = None,
) -> None:
    """Draw digits, or other classes that a model knows, save them as a PNG file and show them.

    Args:
        what: A digit such as 3, a number such as 2026, or names of classes such as cat,dog.
        n: How many times to draw it.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    png = common.picture_file(what, out, gif)
    check_seed(seed, n)
    from mnist_transformer.models import loading
    from mnist_transformer.utils import images
    from mnist_transformer.utils.classes import classes_of

    drawer = loading.load(model, device)
    once = classes_of(what, drawer.class_names)
    labels = once * n
    check_seed(seed, len(labels))
    if gif and len(labels) > MAX_BATCH:
        raise ValueError(f"a GIF shows at most {MAX_BATCH} images, got {len(labels)}")
    drawn, canvases = _draw(drawer, labels, seed, how)
    columns = images.columns_for(len(once), n)
    frames = [images.enlarge(images.grid(canvas, columns)) for canvas in canvases] if gif else []
    made = f"{what} drawn by {PurePath(model).name}, seed {seed}, {how}"
    common.finish(images.grid(drawn, columns), png, made, frames)


def _draw(
    model: "GenerativeModel", labels: list[int], seed: int, how: Sampling
) -> "tuple[Tensor, list[Tensor]]":
    """The finished images, and the canvases of the first batch as they came to be."""
    import torch

    batches = [slice(start, start + MAX_BATCH) for start in range(0, len(labels), MAX_BATCH)]
    seeds = range(seed, seed + len(labels))
    done: list[Tensor] = []
    canvases: list[Tensor] = []
    num_steps, total = 0, None
    with stages() as report:
        for batch in batches:
            for canvas in model.steps(labels[batch], seeds[batch], how):
                if not done:
                    canvases.append(canvas)
                num_steps += 1
                report("drawing", num_steps, total)
            done.append(canvas)
            total = len(canvases) * len(batches)  # a batch takes as many steps as the first
    return torch.cat(done), canvases
