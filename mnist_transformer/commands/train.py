"""train."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import Data, Device
from mnist_transformer.utils.terminal import say


def train(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    out: Path | None = None,
    data: Data = None,
    device: Device = None,
    seed: int = 0,
    max_seconds: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
) -> None:
    """Train a recipe; after an interruption the same command continues where it stopped.

    Args:
        recipe: The name of a recipe (`list` names them).
        out: The folder of the run; otherwise runs/RECIPE.
        seed: The same seed trains the same model.
        max_seconds: Length of the run, instead of the recipe's.
        epochs: Length of the run, instead of the recipe's.
        batch_size: Images per step, instead of the recipe's.
        lr: Peak learning rate of AdamW, instead of the recipe's; Muon's follows in proportion.
    """
    from mnist_transformer.recipes import find_recipe
    from mnist_transformer.training import loop
    from mnist_transformer.training.progress import training

    with training(recipe) as report:
        weights = loop.train(
            find_recipe(recipe),
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
