"""draw."""

import gc
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from mnist_transformer.commands import common
from mnist_transformer.options import FLAGSHIP, MAX_BATCH, PLAIN, check_seed
from mnist_transformer.utils.files import short_name


def draw(
    what: Annotated[Positional[str], arg(metavar="WHAT")],
    n: int = 1,
    model: common.Model = FLAGSHIP,
    seed: common.Seed = 0,
    how: common.How = PLAIN,
    out: common.Out = None,
    gif: common.Gif = False,
    crisp: FlagCreatePairsOff[bool] = False,
    device: common.Device = None,
) -> None:
    """Draw digits, or other classes that a model knows, save them as a PNG file and show them.

    Args:
        what: A digit such as 3, a number such as 2026, or names of classes such as cat,dog.
        n: How many times to draw it.
        crisp: Also save the scans that a model of scans drew, as a PNG and as SVG outlines.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    png = common.picture_file(what, out, [".gif"] * gif + ["-scan.png", "-scan.svg"] * crisp)
    check_seed(seed, n)
    gc.disable()  # for imports it only costs time
    import torch

    from mnist_transformer.models import loading
    from mnist_transformer.utils import images
    from mnist_transformer.utils.classes import classes_of

    gc.enable()
    drawer = loading.load(model, device)
    once = classes_of(what, drawer.class_names)
    labels = once * n
    check_seed(seed, len(labels))
    if gif and len(labels) > MAX_BATCH:
        raise ValueError(f"a GIF shows at most {MAX_BATCH} images, got {len(labels)}")
    columns, seeds = images.columns_for(len(once), n), range(seed, seed + len(labels))
    drawn, frames, parts = [], [], []
    for start in range(0, len(labels), MAX_BATCH):
        asked = labels[start : start + MAX_BATCH], seeds[start : start + MAX_BATCH], how
        if crisp:
            parts.append(drawer.scans(*asked))
            canvas = parts[-1].images
        if gif or not crisp:
            stage = f"drawing from image {start + 1} of {len(labels)}"
            for canvas in common.watched(drawer.steps(*asked), stage):
                if gif:
                    frames.append(images.grid(canvas, columns))
        drawn.append(canvas)
    made = f"{what} drawn by {short_name(model)}, seed {seed}, {how}"
    common.finish(images.grid(torch.cat(drawn), columns), png, made, frames)
    if crisp:
        size = 2 + max(int(part.sides.max()) for part in parts)  # with a margin
        scans = torch.cat([part.canvas(torch.arange(len(part)), size) for part in parts])
        images.save_scans(scans[:, None], columns, png, made)
        common.say(f"saved {png.stem}-scan.png and {png.stem}-scan.svg beside it")
