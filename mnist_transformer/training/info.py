"""How a model was trained, as its checkpoint records it. Importing this needs no torch."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mnist_transformer.utils.checks import from_json


@dataclass(frozen=True)
class RunInfo:
    """A training run in figures; None for whatever a checkpoint does not record."""

    recipe: str
    dataset: str | None = None
    images_seen: int | None = None  # counted with repetition
    steps: int | None = None
    seconds: float | None = None  # with validation and saving, without pauses
    seed: int | None = None
    torch: str | None = None  # its version
    validation: str | None = None  # figures on the whole validation split, in words
    validation_bits_per_dim: float | None = None  # on the whole split too
    # (seconds, images seen, bits/dim or else the loss) at each validation.
    curve: tuple[tuple[float, int, float], ...] | None = None


def read_info(weights: Path) -> RunInfo:
    """The training of a checkpoint's model; errors as ``checkpoint.read_notes``.

    The file's name stands in for a missing recipe. In the first checkpoints every note was a
    string, and ``images_seen`` was ``images``.
    """
    from mnist_transformer.models import checkpoint
    from mnist_transformer.utils import trees

    notes = checkpoint.read_notes(weights)
    notes = {"recipe": weights.stem, "images_seen": notes.get("images"), **notes}
    values: dict[str, Any] = {field.name: notes.get(field.name) for field in fields(RunInfo)}
    for name in values.keys() - {"recipe", "dataset", "torch", "validation"}:
        if isinstance(values[name], str):
            values[name] = trees.parse(values[name])
    try:
        return from_json(RunInfo, values)
    except ValueError as error:
        raise ValueError(f"{weights} has notes of another kind: {error}") from error
