"""inpaint."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands import common
from mnist_transformer.options import FLAGSHIP, MAX_BATCH, PLAIN, check_seed
from mnist_transformer.utils.files import short_name
from mnist_transformer.utils.terminal import say


def inpaint(
    image: Annotated[Positional[Path], arg(metavar="IMAGE")],
    hole: str | None = None,
    mask: Path | None = None,
    label: str | None = None,
    n: int = 8,
    model: common.Model = FLAGSHIP,
    seed: common.Seed = 0,
    how: common.How = PLAIN,
    out: common.Out = None,
    gif: common.Gif = False,
    device: common.Device = None,
) -> None:
    """Draw the missing part of a picture, save it as a PNG file and show it.

    Args:
        image: A PNG or JPEG file; it is scaled to the model's size, and made light on black for a
            model of digits.
        hole: The missing part: top, bottom, left, right, center, or random:0.5 for that share.
        mask: Instead of a hole, a picture that is white where pixels are missing, of the image's
            shape or square.
        label: The class. Without it completions are drawn without a class, and a model with an
            exact likelihood says which class it may be.
        n: How many completions to draw.
    """
    if (hole is None) == (mask is None):
        raise ValueError(f"hole is {hole!r}, mask is {mask}, expected either --hole or --mask")
    if not 1 <= n <= MAX_BATCH:
        raise ValueError(f"n is {n}, expected 1 to {MAX_BATCH}")
    png = common.picture_file(f"{image.stem}-inpainted", out, [".gif"] * gif)
    check_seed(seed, n)
    from mnist_transformer.data import pictures
    from mnist_transformer.models import inpaint, loading
    from mnist_transformer.utils.classes import class_of

    drawer = loading.load(model, device)
    wanted = None if label is None else class_of(label, drawer.class_names)
    spec, size = drawer.config.data, drawer.image_shape[-1]
    picture, turned = pictures.open_picture(image)
    if mask is not None:
        keep = pictures.read_mask(mask, size, picture.size, crop=not spec.is_ink)
    else:
        keep = inpaint.hole(hole or "", size, seed)
    original, changes = pictures.to_image_of(spec, picture, str(image))
    for change in turned + changes:
        say(f"{image} was {change}")
    frames = []
    canvases = inpaint.complete(drawer, original, keep, n=n, label=wanted, seed=seed, how=how)
    for canvas in common.watched(canvases):
        if gif:
            frames.append(inpaint.sheet(original, keep, canvas, columns=10))
    if wanted is None and (guess := inpaint.likeliest(drawer, canvas)):
        say(f"it may be a {guess}")
    made = f"{image.name} completed by {short_name(model)}, seed {seed}, {how}"
    common.finish(inpaint.sheet(original, keep, canvas, columns=10), png, made, frames)
