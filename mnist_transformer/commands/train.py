"""train."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import Data, Device
from mnist_transformer.utils.terminal import complain, say


def train(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    out: Path | None = None,
    data: Data = None,
    dataset: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    device: Device = None,
    seed: int = 0,
    max_seconds: float | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
) -> None:
    """Train a recipe; after an interruption the same command continues where it stopped.

    Args:
        recipe: The name of a recipe (`list` names them). patch, pixel, ddpm, mar, vqvae and var
            take any data.
        out: The folder of the run; otherwise runs/RECIPE.
        dataset: For recipes of any data: folder (pictures, maybe in class folders), idx, cifar10 or
            another one; otherwise folder.
        size: Height and width that a folder's pictures are scaled to; otherwise 32.
        channels: 1 makes them grey and 3 colour; otherwise colour if any picture has some.
        seed: The same seed trains the same model.
        max_seconds: Length of the run, instead of the recipe's.
        epochs: Length of the run, instead of the recipe's.
        batch_size: Images per step, instead of the recipe's.
        lr: Peak learning rate of AdamW, instead of the recipe's; Muon's follows in proportion.
    """
    from mnist_transformer.data import Dataset, DataSpec, Split, load_dataset
    from mnist_transformer.data.folder import SIZE
    from mnist_transformer.recipes import GENERIC, find_recipe
    from mnist_transformer.training import loop
    from mnist_transformer.training.log import training

    place, found = out or Path("runs") / recipe, find_recipe(recipe)
    runs = {place: found}
    source: Path | Dataset | None = data
    if recipe in GENERIC:
        if dataset in (None, "folder"):  # refuse a size that does not fit before pictures are read
            found.model(DataSpec("folder", (channels or 3, size or SIZE, size or SIZE), ("",)))
        source = load_dataset(dataset or found.dataset, data, size=size, channels=channels)
        if type(source.train) is not Split:
            raise ValueError(f"{dataset} is for models that read sentences, {recipe} reads none")
        for note in source.notes:
            complain(note)
        tokenizer = place.parent / (found.tokenizer or "")
        if found.tokenizer and not (tokenizer / "model.safetensors").is_file():
            runs = {tokenizer: find_recipe(found.tokenizer), place: found}
    elif (dataset, size, channels) != (None, None, None):
        expected = f"expected one of {', '.join(GENERIC)} for other data or another size"
        raise ValueError(f"{recipe} is a recipe for {found.dataset}, {expected}")
    for place, found in runs.items():
        with training(found.name) as report:
            weights = loop.train(
                found,
                place,
                data=source,
                device=device,
                seed=seed,
                max_seconds=max_seconds,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                report=report,
            )
        say(f"saved {weights}")
