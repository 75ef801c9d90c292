"""How a model's row of the ledger came about: its commands, their time and the machine.

make reproduce MODEL=mnist-var
"""

import sys

import tyro

from mnist_transformer.evaluation import ledger, tables
from mnist_transformer.evaluation.ledger import Row
from mnist_transformer.recipes import find_recipe
from mnist_transformer.utils.checks import check_name
from mnist_transformer.utils.terminal import exit_code, say
from tools import columns


def commands(name: str, rows: dict[str, Row]) -> list[str]:
    """Shell lines that train and evaluate a model again, after the models that it needs.

    Raises ValueError where no row has the name.
    """
    check_name("model", name, [x for x, row in rows.items() if "experiment" not in row["metrics"]])
    row, recipe = rows[name], find_recipe(name)
    needed = recipe.tokenizer or getattr(recipe.model, "teacher", None)
    lines = commands(needed, rows) if needed in rows else []
    length, seconds = "", row["seconds"]
    if recipe.max_seconds is not None and seconds and abs(seconds - recipe.max_seconds) > 1:
        length = f" --max-seconds {seconds:.0f}"
    took = f"{columns.duration(row)}, {tables.number(row['images_seen'], 0)} images"
    measured = f"{row['device']}, torch {row['torch']}, {row['date'][:10]}, commit {row['commit']}"
    evaluate = [f"runs/{name}" if word == name else word for word in row["command"].split()]
    train = f"mnist-transformer train {name}{length}"
    return [*lines, f"# {name}: {took}", train, f"# {measured}", " ".join(evaluate)]


def main(model: str) -> None:
    """Print how to train and measure a model again.

    Args:
        model: A recipe's name, as in the tables.
    """
    for line in commands(model, ledger.latest(ledger.results_folder() / "ledger.jsonl")):
        say(line)


if __name__ == "__main__":
    sys.exit(exit_code("tools.reproduce", lambda: tyro.cli(main, prog="python -m tools.reproduce")))
