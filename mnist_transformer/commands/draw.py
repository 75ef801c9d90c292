"""draw and inpaint."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from mnist_transformer.commands.common import PROG, OptionalInt, OptionalPath, OptionalStr
from mnist_transformer.utils.terminal import say, show, stages

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from mnist_transformer.models.base import GenerativeModel
    from mnist_transformer.options import Sampling

MAX_BATCH = 256  # images drawn at once


def draw(
    digits: Annotated[Positional[str], arg(metavar="DIGITS")],
    n: int = 1,
    model: str = "mnist-patch",
    seed: int = 0,
    temperature: float = 1.0,
    top_k: OptionalInt = None,
    top_p: float = 1.0,
    guidance: float = 1.0,
    num_steps: OptionalInt = None,
    sampler: OptionalStr = None,
    out: OptionalPath = None,
    gif: FlagCreatePairsOff[bool] = False,
    device: OptionalStr = None,
) -> None:
    """Draw digits, save them as a PNG file and show them in the terminal.

    Args:
        digits: What to draw: 3, or several digits side by side: 2026.
        n: How many times to draw it.
        model: A shipped model (`list` names them), a checkpoint or a training run's folder.
        seed: The same seed draws the same picture.
        temperature: Above 0; below 1 draws safer, above 1 wilder.
        top_k: Draw from this many of the likeliest values only.
        top_p: Draw from the likeliest values that make up this share, in (0, 1].
        guidance: Classifier-free guidance: 1 is plain, above 1 makes the class plainer.
        num_steps: In how many steps to draw, where the model leaves a choice.
        sampler: How diffusion takes its steps: euler, ddim, heun or ancestral.
        out: The PNG file to write, or a folder for it; otherwise DIGITS.png in this folder.
        gif: Also save a GIF that shows the drawing happen.
        device: Such as cpu, cuda or mps; otherwise the best there is.
    """
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"digits are {digits!r}, expected one or more of 0 to 9")
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    if gif and n * len(digits) > MAX_BATCH:
        raise ValueError(f"a GIF shows at most {MAX_BATCH} digits, got {n * len(digits)}")
    png, movie = picture_files(digits, out, gif)
    from mnist_transformer.networks.drawing import Noise
    from mnist_transformer.options import Sampling
    from mnist_transformer.utils import images

    how = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
        num_steps=num_steps,
        sampler=sampler,
    )
    # A seed that is none is known before the model is loaded.
    Noise([seed, seed + n * len(digits) - 1])
    from mnist_transformer.models import loading

    drawer = loading.load(model, device)
    drawn, canvases = _draw(drawer, [int(digit) for digit in digits] * n, seed, how)
    columns = images.columns_for(digits, n)
    frames = [images.enlarge(images.grid(canvas, columns)) for canvas in canvases] if gif else []
    made = f"{digits} drawn by {Path(model).name}, seed {seed}, {how}"
    _finish(images.grid(drawn, columns), frames, png, movie, made)


def inpaint(
    image: Annotated[Positional[Path], arg(metavar="IMAGE")],
    hole: OptionalStr = None,
    mask: OptionalPath = None,
    label: OptionalInt = None,
    n: int = 8,
    model: str = "mnist-patch",
    seed: int = 0,
    temperature: float = 1.0,
    top_k: OptionalInt = None,
    top_p: float = 1.0,
    guidance: float = 1.0,
    num_particles: OptionalInt = None,
    num_steps: OptionalInt = None,
    sampler: OptionalStr = None,
    out: OptionalPath = None,
    gif: FlagCreatePairsOff[bool] = False,
    device: OptionalStr = None,
) -> None:
    """Draw what is missing in a picture of a digit, save it as a PNG file and show it.

    Args:
        image: A PNG or JPEG file; it is made 28x28 and light on black.
        hole: What is missing: top, bottom, left, right, center, or random:0.5 for that share.
        mask: Instead of a hole, a picture that is white where it is missing, of the image's shape
            or square.
        label: The digit; if it is not given, completions are drawn without a class, and a model
            with an exact likelihood says which digit it may be.
        n: How many completions to draw.
        model: A shipped model (`list` names them), a checkpoint or a training run's folder.
        seed: The same seed draws the same completions.
        temperature: Above 0; below 1 draws safer, above 1 wilder.
        top_k: Draw from this many of the likeliest values only.
        top_p: Draw from the likeliest values that make up this share, in (0, 1].
        guidance: Classifier-free guidance: 1 is plain, above 1 makes the class plainer.
        num_particles: How many drawings compete for each completion, in models that draw in
            raster order; more fit what is kept better.
        num_steps: In how many steps to draw, where the model leaves a choice.
        sampler: How diffusion takes its steps: euler, ddim, heun or ancestral.
        out: The PNG file to write, or a folder for it; otherwise IMAGE-inpainted.png here.
        gif: Also save a GIF that shows the drawing happen.
        device: Such as cpu, cuda or mps; otherwise the best there is.
    """
    if (hole is None) == (mask is None):
        raise ValueError("expected either --hole or --mask, to say what is missing")
    if not 1 <= n <= MAX_BATCH:
        raise ValueError(f"n is {n}, expected 1 to {MAX_BATCH}")
    png, movie = picture_files(f"{image.stem}-inpainted", out, gif)
    from mnist_transformer.models import inpaint as around
    from mnist_transformer.networks.drawing import Noise
    from mnist_transformer.options import Sampling
    from mnist_transformer.utils import images

    Noise([seed, seed + n - 1])  # a seed that is none is known before the model is loaded
    how = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
        num_steps=num_steps,
        sampler=sampler,
    )
    if num_particles is not None:
        how = replace(how, num_particles=num_particles)
    from mnist_transformer.models import loading

    drawer = loading.load(model, device)
    size = drawer.image_shape[-1]
    if mask is not None:
        keep = around.read_mask(mask, size, image)
    else:
        assert hole is not None
        keep = around.hole(hole, size, seed)
    original, changes = around.read_picture(image, size)
    for change in changes:
        say(f"{image} was {change}")
    frames, num_canvases = [], 0
    with stages() as report:
        steps = around.complete(drawer, original, keep, n=n, label=label, seed=seed, how=how)
        for canvas in steps:
            if gif:
                frames.append(images.enlarge(around.sheet(original, keep, canvas, columns=10)))
            num_canvases += 1
            report("drawing", num_canvases, None)
    if label is None and (guess := around.likeliest(drawer, canvas)):
        say(f"it may be a {guess}")
    made = f"{image.name} completed by {Path(model).name}, seed {seed}, {how}"
    _finish(around.sheet(original, keep, canvas, columns=10), frames, png, movie, made)


def _draw(
    model: "GenerativeModel", labels: list[int], seed: int, how: "Sampling"
) -> "tuple[Tensor, list[Tensor]]":
    """The finished images, and the canvases of the first batch as they came to be."""
    import torch

    done: list[Tensor] = []
    canvases: list[Tensor] = []
    num_steps, total = 0, None
    with stages() as report:
        for start in range(0, len(labels), MAX_BATCH):
            batch = labels[start : start + MAX_BATCH]
            for canvas in model.steps(batch, range(seed + start, seed + start + len(batch)), how):
                if start == 0:
                    canvases.append(canvas)
                num_steps += 1
                report("drawing", num_steps, total)
            done.append(canvas)
            # How many steps a batch takes is known after the first.
            total = len(canvases) * -(-len(labels) // MAX_BATCH)
    return torch.cat(done), canvases


def _finish(picture: "Image", frames: "list[Image]", png: Path, movie: Path, made: str) -> None:
    """Save and show a picture, and save its frames where there are any; ``made`` says of what."""
    from mnist_transformer.utils import images

    images.save_png(images.enlarge(picture), png, {"Description": made})
    if frames:
        images.save_gif(frames, movie)
    show(picture)
    for path in (png, movie) if frames else (png,):
        say(f"saved {path}")


def check_picture(out: Path | None) -> None:
    """Raises ValueError for a file that is not to be a PNG."""
    if out is not None and not out.is_dir() and out.suffix.lower() != ".png":
        raise ValueError(f"out is {str(out)!r}, expected a name in .png (--gif adds the GIF)")


def picture_files(stem: str, out: Path | None, gif: bool) -> tuple[Path, Path]:
    """Where the PNG and the GIF go. A name that the user did not choose never costs a file."""
    check_picture(out)
    chosen = out is not None and not out.is_dir()
    png = out if out is not None and chosen else (out or Path()) / f"{stem}.png"
    movie = png.with_suffix(".gif")
    for path in ([] if chosen else [png]) + ([movie] if gif else []):
        from mnist_transformer.utils.images import is_ours

        if path.exists() and not is_ours(path):
            raise ValueError(
                f"{path} exists and was not drawn by {PROG}: name another file with --out"
            )
    return png, movie
