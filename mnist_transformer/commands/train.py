"""train."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import (
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalStr,
    find_recipe,
)
from mnist_transformer.utils.terminal import say, training


def train(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    out: OptionalPath = None,
    data: OptionalPath = None,
    device: OptionalStr = None,
    seed: int = 0,
    max_seconds: OptionalFloat = None,
    epochs: OptionalFloat = None,
    batch_size: OptionalInt = None,
    lr: OptionalFloat = None,
) -> None:
    """Train a recipe; after an interruption the same command goes on where it stopped.

    Args:
        recipe: The name of a recipe (`list` names them).
        out: The folder of the run; otherwise runs/RECIPE.
        data: The folder with MNIST's four files; otherwise what MNIST_TRANSFORMER_DATA names,
            else a cache that a download fills.
        device: Such as cpu, cuda or mps; otherwise the best there is.
        seed: The same seed trains the same model.
        max_seconds: Length of the run, instead of the recipe's.
        epochs: Length of the run, instead of the recipe's.
        batch_size: Images a step, instead of the recipe's.
        lr: Peak learning rate of AdamW, instead of the recipe's; Muon's follows in proportion.
    """
    chosen = find_recipe(recipe)
    from mnist_transformer.training.loop import train as run

    with training(recipe) as report:
        weights = run(
            chosen,
            out or Path("runs") / recipe,
            data=data,
            device=device,
            seed=seed,
            max_seconds=max_seconds,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            report=report,
        )
    say(f"saved {weights}")
