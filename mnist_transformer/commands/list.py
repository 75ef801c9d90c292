"""list."""

import textwrap
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import PROG
from mnist_transformer.utils.terminal import say

if TYPE_CHECKING:
    from mnist_transformer.models.base import Model
    from mnist_transformer.recipes import Recipe

WIDTH, INDENT = 80, 12


def list_models(name: Annotated[Positional[str | None], arg(metavar="NAME")] = None) -> None:
    """List the models, a line each, or say more about one of them.

    Args:
        name: The model to say more about.
    """
    from mnist_transformer.evaluation import ledger, tables
    from mnist_transformer.models import loading
    from mnist_transformer.recipes import RECIPES, find_recipe

    rows, shipped = ledger.latest(), loading.shipped()
    if name is not None:
        for head, text in _details(find_recipe(name), rows.get(name), name in shipped).items():
            for part in text.splitlines():
                wrapped = textwrap.fill(part, WIDTH - INDENT, break_on_hyphens=False)
                say(f"{head:<{INDENT}}" + wrapped.replace("\n", "\n" + " " * INDENT))
                head = ""
        return
    line = "{:<24}{:>8}{:>15}{:>10}  {}"
    say(line.format("model", "size", "test bits/dim", "fd_cnn", "weights"))
    for recipe in RECIPES.values():
        row = rows.get(recipe.name)
        size = tables.size(row) if row else tables.short(_unweighted(recipe).num_parameters)
        measured = [tables.bits(row), tables.fd_cnn(row)] if row else ["", ""]
        figures = [text.replace(tables.NOTHING, "") for text in measured]
        status = "shipped" if recipe.name in shipped else "trainable"
        say(line.format(recipe.name, size, *figures, status))
    say(f"\n`{PROG} list NAME` says more about a model.")


def _details(recipe: "Recipe", row: dict[str, Any] | None, shipped: bool) -> dict[str, str]:
    """What there is to say about a model, each thing by its name."""
    from mnist_transformer.models.base import GenerativeModel

    model = _unweighted(recipe)
    data = getattr(recipe.model, "data", None)
    if recipe.max_seconds is not None:
        length = f"{recipe.max_seconds / 60:g} minutes"
    else:
        length = f"{recipe.epochs:g} epochs"
    told = {
        "model": recipe.name,
        "about": recipe.about,
        "family": type(model).__name__,
        "does": ", ".join(_abilities(model)),
        "size": f"{row['parameters'] if row else model.num_parameters:,} parameters",
        "weights": "shipped" if shipped else "to be trained",
        "train": f"{PROG} train {recipe.name} (takes {length})",
        "data set": recipe.dataset if data is None else f"{recipe.dataset} ({data.licence})",
    }
    if isinstance(model, GenerativeModel):
        told["options"] = ", ".join(sorted(model.honours)) or "none"
    told["config"] = _settings(recipe.model)
    if row is not None:
        told["measured"] = f"{row['date'][:10]} on {row['device']}"
        told["figures"] = "\n".join(_figures(row["metrics"], row["exact"]))
    return told


def _unweighted(recipe: "Recipe") -> "Model":
    """The model without memory for its weights."""
    import torch

    with torch.device("meta"):
        model: Model = recipe.model.build()
    return model


def _abilities(model: "Model") -> list[str]:
    from mnist_transformer.models.base import GenerativeModel, Judge, Tokenizer
    from mnist_transformer.prompting.asking import reads_prompts

    found = {
        "judges drawn images": isinstance(model, Judge),
        "reads prompts": reads_prompts(model),
        "encodes": isinstance(model, Tokenizer),
        "draws": isinstance(model, GenerativeModel),
    }
    return [ability for ability, has in found.items() if has]


def _settings(config: Any) -> str:
    """The settings of a config that are numbers or words, such as "dim=256 depth=6"."""
    chosen = {f.name: getattr(config, f.name) for f in fields(config)}
    shown = {k: v for k, v in chosen.items() if not is_dataclass(v) and v is not None}
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in shown.items())


def _figures(metrics: dict[str, Any], exact: bool | None) -> list[str]:
    """The figures of a ledger row in words."""
    bound = "" if exact else "≤ "
    found = [
        f"{bound}{metrics[key]:.3f} bits/dim ({split})"
        for key, split in (("bits_per_dim", "test"), ("bits_per_dim_val", "validation"))
        if key in metrics
    ]
    for drawn in metrics.get("drawn", ()):
        found.append(
            f"guidance {drawn['guidance']:g}: {100 * drawn['agreement']['mean']:.1f} % read right, "
            f"fd_cnn {drawn['fd_cnn']['mean']:.3f}"
        )
    if "accuracy" in metrics:
        found.append(f"{100 * metrics['accuracy']:.2f} % of test images read right")
    if "reconstruction" in metrics:
        found.append(f"fd_cnn of reconstructions {metrics['reconstruction']['fd_cnn']:.3f}")
    return found
