"""export."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.utils.terminal import say


def export(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    out: Annotated[Path, arg(help="The file to write, with a name in .onnx.")],
) -> None:
    """Write one step of a model's drawing as ONNX, for programs without PyTorch.

    Args:
        model: A shipped model of scans or of diffusion, a checkpoint or a training run's folder.
    """
    if out.suffix != ".onnx":
        raise ValueError(f"out is {str(out)!r}, expected a name in .onnx")
    from mnist_transformer.models.export import export
    from mnist_transformer.models.loading import load

    export(load(model, "cpu"), Path(model).name, out)
    say(f"saved {out}")
