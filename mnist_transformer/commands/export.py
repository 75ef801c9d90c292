"""export."""

from pathlib import Path

from mnist_transformer.commands.common import ModelName
from mnist_transformer.utils.terminal import say


def export(model: ModelName, out: Path) -> None:
    """Write one step of a model's drawing as ONNX, for programs without PyTorch.

    Args:
        model: A shipped model of scans or of diffusion, a checkpoint or a training run's folder.
        out: The file to write, with a name in .onnx.
    """
    if out.suffix != ".onnx":
        raise ValueError(f"out is {str(out)!r}, expected a name in .onnx")
    from mnist_transformer.models.export import export
    from mnist_transformer.models.loading import load

    export(load(model, "cpu"), Path(model).name, out)
    say(f"saved {out}")
