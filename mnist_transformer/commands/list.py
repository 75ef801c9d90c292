"""list."""

import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import PROG
from mnist_transformer.utils.terminal import say

if TYPE_CHECKING:
    from mnist_transformer.models.base import Model
    from mnist_transformer.recipes import Recipe

LINE = "{:<24}{:>8}{:>15}{:>10}  {}"


def list_models(name: Annotated[Positional[str | None], arg(metavar="NAME")] = None) -> None:
    """List the models, one per line, or say more about one of them.

    Args:
        name: The model to say more about.
    """
    from mnist_transformer.evaluation import ledger, tables
    from mnist_transformer.models import loading
    from mnist_transformer.recipes import GENERIC, RECIPES, find_recipe

    rows, shipped = ledger.latest(), loading.shipped()
    if name in GENERIC:
        return say(f"{name}, for any data: {GENERIC[name].about}; see `{PROG} train --help`")
    if name is not None:
        wrap = textwrap.TextWrapper(80, subsequent_indent=12 * " ", break_on_hyphens=False)
        for head, text in _details(find_recipe(name), rows.get(name), name in shipped):
            say(wrap.fill(f"{head:<12}{text}"))
        return
    say(LINE.format("model", "size", "test bits/dim", "fd_cnn", "weights"))
    for recipe in RECIPES.values():
        row = rows.get(recipe.name)
        size = tables.size(row) if row else tables.short(_unweighted(recipe).num_parameters)
        measured = [tables.bits(row), tables.fd_cnn(row)] if row else ["", ""]
        figures = [text.replace(tables.NOTHING, "") for text in measured]
        status = "shipped" if recipe.name in shipped else "trainable"
        say(LINE.format(recipe.name, size, *figures, status))
    say(f"\nfor any data: {', '.join(GENERIC)}\n`{PROG} list NAME` says more about a model.")


def _unweighted(recipe: "Recipe") -> "Model":
    """The model without memory for its weights."""
    import torch

    with torch.device("meta"):
        return recipe.model.build()


def _details(
    recipe: "Recipe", row: dict[str, Any] | None, shipped: bool
) -> Iterator[tuple[str, str]]:
    """Everything there is to say about a model, as pairs of a heading and a text."""
    from mnist_transformer.evaluation.tables import bits, percent, plus_minus
    from mnist_transformer.models.base import GenerativeModel, Judge, Tokenizer
    from mnist_transformer.prompting.asking import ReadsPrompts

    model = _unweighted(recipe)
    abilities = {
        "judges drawn images": isinstance(model, Judge),
        "reads prompts": isinstance(model, ReadsPrompts),
        "encodes": isinstance(model, Tokenizer),
        "draws": isinstance(model, GenerativeModel),
    }
    minutes, epochs = recipe.max_seconds and recipe.max_seconds / 60, recipe.epochs
    length = f"{minutes:g} minutes" if minutes else f"{epochs:g} epochs"
    config = {k: v for k, v in vars(recipe.model).items() if not (v is None or is_dataclass(v))}
    yield "model", recipe.name
    yield "about", recipe.about
    yield "does", ", ".join(ability for ability, has in abilities.items() if has)
    yield "size", f"{row['parameters'] if row else model.num_parameters:,} parameters"
    yield "weights", "shipped" if shipped else "to be trained"
    yield "train", f"{PROG} train {recipe.name} (takes {length})"
    yield "data set", f"{recipe.dataset} ({recipe.model.data.licence})"
    yield "classes", ", ".join(recipe.model.data.class_names)
    yield "config", " ".join(f"{k}={v}".replace(" ", "") for k, v in config.items())
    if isinstance(model, GenerativeModel):
        yield "options", ", ".join(sorted(model.honours))
    if row is None:
        return
    yield "measured", f"{row['date'][:10]} on {row['device']}"
    metrics = row["metrics"]
    if "bits_per_dim" in metrics:
        yield "", f"bits/dim: {bits(row)} test, {metrics['bits_per_dim_val']:.3f} validation"
    for drawn in metrics.get("drawn", ()):
        agreement, distance = percent(drawn["agreement"]), plus_minus(drawn["fd_cnn"])
        yield "", f"guidance {drawn['guidance']:g}: {agreement} % read right, fd_cnn {distance}"
    if "accuracy" in metrics:
        yield "", f"{100 * metrics['accuracy']:.2f} % of test images read right"
    if "reconstruction" in metrics:
        yield "", f"fd_cnn of reconstructions: {metrics['reconstruction']['fd_cnn']:.3f}"
