"""Parts that several verbs share: their flags, and the files that pictures go to."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, TypeAlias, get_args

from tyro.conf import FlagCreatePairsOff, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mnist_transformer.options import Sampling
from mnist_transformer.utils.terminal import say, show

if TYPE_CHECKING:
    from PIL.Image import Image

PROG = "mnist-transformer"
REGISTRY = ConstructorRegistry()

Model: TypeAlias = Annotated[
    str, arg(help="A shipped model (`list` names them), a checkpoint or a training run's folder.")
]
Seed: TypeAlias = Annotated[int, arg(help="The same seed draws the same pictures.")]
How: TypeAlias = Annotated[Sampling, arg(name="")]  # a flag for each of its fields
Out: TypeAlias = Annotated[
    Path | None, arg(help="The PNG file to write, or a folder for it; otherwise this folder.")
]
Gif: TypeAlias = Annotated[
    FlagCreatePairsOff[bool], arg(help="Also save a GIF that shows the drawing happen.")
]
Device: TypeAlias = Annotated[
    str | None, arg(help="Such as cpu, cuda or mps; otherwise the best that is here.")
]
Data: TypeAlias = Annotated[
    Path | None,
    arg(
        help="The folder with the data set's files; otherwise the one that MNIST_TRANSFORMER_DATA "
        "names, else a cache that a download fills."
    ),
]


@REGISTRY.primitive_rule
def _or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """An option that may be left out is read as its other type is, and shows no "None"."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if len(kinds) != 1 or NoneType not in get_args(info.type):
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
    assert isinstance(spec, PrimitiveConstructorSpec)
    given, shown = spec.is_instance, spec.str_from_instance
    return replace(
        spec,
        is_instance=lambda value: value is None or given(value),
        str_from_instance=lambda value: ["none"] if value is None else shown(value),
    )


def typed_command() -> str:
    """The command line, without folders of this machine."""
    from mnist_transformer.evaluation import ledger

    return ledger.clean_command([PROG, *sys.argv[1:]])


def check_picture(out: Path | None) -> None:
    """Raises ValueError for a file that is not to be a PNG."""
    if out is not None and not out.is_dir() and out.suffix.lower() != ".png":
        raise ValueError(f"out is {str(out)!r}, expected a name in .png (--gif adds the GIF)")


def picture_file(name: str, out: Path | None, gif: bool = False) -> Path:
    """Where the PNG goes, and a GIF beside it. No name that the user did not choose costs a file.

    Args:
        name: of the PNG where the user chose none, without its suffix.
    """
    check_picture(out)
    chosen = out is not None and not out.is_dir()
    stem = re.sub(r"[^\w.-]+", "-", name)
    png = out if out is not None and chosen else (out or Path()) / f"{stem}.png"
    for path in ([] if chosen else [png]) + ([png.with_suffix(".gif")] if gif else []):
        from mnist_transformer.utils.images import is_ours

        if path.exists() and not is_ours(path):
            raise ValueError(
                f"{path} exists and was not drawn by {PROG}: name another file with --out"
            )
    return png


def finish(picture: "Image", png: Path, made: str, frames: "list[Image] | None" = None) -> None:
    """Save and show a picture, and save its frames as a GIF where there are any.

    Args:
        made: how the picture was made, for whoever opens the file.
    """
    from mnist_transformer.utils import images

    images.save_png(images.enlarge(picture), png, {"Description": made})
    show(picture)
    say(f"saved {png}")
    if frames:
        images.save_gif(frames, png.with_suffix(".gif"))
        say(f"saved {png.with_suffix('.gif')}")
