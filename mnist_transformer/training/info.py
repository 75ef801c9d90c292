"""How a model was trained, as its checkpoint tells. Importing this needs no torch."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from mnist_transformer.utils.checks import from_json


@dataclass(frozen=True)
class RunInfo:
    """A training run in figures; None for all that a checkpoint does not tell.

    Args:
        images_seen: training images, counted with repetition.
        seconds: duration with validation and saving, without pauses.
        torch: the version of torch.
        validation: figures on the whole validation split, in words.
        validation_bits_per_dim: likelihood on the whole validation split.
        curve: (seconds, images seen, bits/dim or else the loss) at each validation.
    """

    recipe: str
    dataset: str | None = None
    images_seen: int | None = None
    steps: int | None = None
    seconds: float | None = None
    seed: int | None = None
    torch: str | None = None
    validation: str | None = None
    validation_bits_per_dim: float | None = None
    curve: tuple[tuple[float, int, float], ...] | None = None


def read_info(weights: Path) -> RunInfo:
    """The training of a checkpoint's model; errors as ``checkpoint.read_notes``.

    The file's name stands for a recipe not noted. In the first checkpoints every note was a
    string, and ``images_seen`` was ``images``.
    """
    from mnist_transformer.models import checkpoint
    from mnist_transformer.utils import trees

    notes = checkpoint.read_notes(weights)
    notes = {"recipe": weights.stem, "images_seen": notes.get("images"), **notes}
    values: dict[str, Any] = {field.name: notes.get(field.name) for field in fields(RunInfo)}
    for name, value in values.items():
        if isinstance(value, str) and name not in ("recipe", "dataset", "torch", "validation"):
            values[name] = trees.parse(value)
    try:
        return cast(RunInfo, from_json(RunInfo, values))
    except ValueError as error:
        raise ValueError(f"{weights} has notes of another kind: {error}") from error
