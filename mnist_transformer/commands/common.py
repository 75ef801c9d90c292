"""Parts that several verbs share: their flags, and the files that pictures go to."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, TypeAlias, get_args

from tyro.conf import FlagCreatePairsOff, Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mnist_transformer.options import Sampling
from mnist_transformer.utils.terminal import say, show, stages

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PROG = "mnist-transformer"
REGISTRY = ConstructorRegistry()

Model: TypeAlias = Annotated[
    str, arg(help="A shipped model (`list` names them), a checkpoint or a training run's folder.")
]
ModelName: TypeAlias = Annotated[Positional[str], arg(metavar="MODEL")]  # each verb has its help
Seed: TypeAlias = Annotated[int, arg(help="The same seed draws the same pictures.")]
How: TypeAlias = Annotated[Sampling, arg(name="")]  # a flag for each of its fields
Out: TypeAlias = Annotated[
    Path | None, arg(help="The PNG file to write, or its folder; by default the current folder.")
]
Gif: TypeAlias = Annotated[
    FlagCreatePairsOff[bool], arg(help="Also save a GIF of the drawing as it progresses.")
]
Device: TypeAlias = Annotated[
    str | None, arg(help="Such as cpu, cuda or mps; otherwise the best available.")
]
_DATA = (
    "The folder with the data set's files. By default they are downloaded; MNIST is read from the "
    "folder that MNIST_TRANSFORMER_DATA names, else from the package."
)
Data: TypeAlias = Annotated[Path | None, arg(help=_DATA)]


@REGISTRY.primitive_rule
def _or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Parse an option that may be None like its other type, and do not show "None"."""
    kind, *rest = [*get_args(info.type), None]
    if rest != [NoneType, None]:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    assert isinstance(spec, PrimitiveConstructorSpec)
    given, shown = spec.is_instance, spec.str_from_instance
    return replace(
        spec,
        is_instance=lambda value: value is None or given(value),
        str_from_instance=lambda value: ["none"] if value is None else shown(value),
    )


def check_picture(out: Path | None) -> None:
    """Raises ValueError for a name not in .png, or something that is not a file, such as a pipe."""
    if out is None or out.is_dir():
        return
    if out.exists() and not out.is_file():
        raise ValueError(f"{out} is not a file, expected a name in .png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"out is {str(out)!r}, expected a name in .png (--gif adds the GIF)")


def picture_file(name: str, out: Path | None, beside: Sequence[str] = ()) -> Path:
    """Where the PNG goes. A name that the user did not choose never overwrites a foreign file.

    Args:
        name: of the PNG where the user chose none, without its suffix.
        beside: suffixes of other files that go there, in place of ".png".
    """
    from mnist_transformer.utils.images import is_ours

    check_picture(out)
    place = out or Path()
    chosen = not place.is_dir()
    png = place if chosen else place / (re.sub(r"[^\w.-]+", "-", name) + ".png")
    others = [png.with_name(png.stem + end) for end in beside]
    for path in others if chosen else [png, *others]:
        if path.exists() and not is_ours(path):
            raise ValueError(f"{path} exists and was not drawn by {PROG}: name another with --out")
    return png


def watched(canvases: "Iterable[Tensor]", stage: str = "drawing") -> "Iterator[Tensor]":
    """The canvases of a drawing, counted on the terminal."""
    with stages() as report:
        for number, canvas in enumerate(canvases, start=1):
            report(stage, number, None)
            yield canvas


def finish(
    picture: "Image", png: Path, made: str, frames: "Sequence[Image]" = (), said: str = ""
) -> None:
    """Save and show a picture, and save its frames as a GIF where there are any.

    Args:
        made: how the picture was made, for whoever opens the file.
        said: text before the name of the file.
    """
    from mnist_transformer.utils import images

    images.save_png(images.enlarge(picture), png, {"Description": made})
    show(picture)
    say(f"{said}saved {png}")
    if frames:
        images.save_gif(frames, png.with_suffix(".gif"))
        say(f"saved {png.with_suffix('.gif')}")
