"""How much does a change gain? Recipes with fields of the model changed, trained equally long.

    python -m experiments.changes mnist-ddpm --changes '{}' '{"built_in_guidance": 1.5}'

A change is a JSON object of fields and values; {} is the recipe's own model. Images are drawn
plainly. An exact likelihood is measured on the validation split; a tokenizer is measured on the
test set, encoded and decoded.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from experiments.common import Figures, Quality, run_cell, start
from experiments.var import coded_figures
from mnist_transformer.data import load_dataset
from mnist_transformer.evaluation.metrics import precision_recall
from mnist_transformer.evaluation.speed import sampling_speed
from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.loading import find_weights
from mnist_transformer.recipes import find_recipe
from mnist_transformer.utils.checks import from_json


def main(
    name: Positional[str],
    changes: tuple[str, ...] = ("{}",),
    tokenizer: str | None = None,
    data: Path | None = None,
    seeds: tuple[int, ...] = (0,),
    max_seconds: float = 900.0,
    num_samples: int = 2000,
    num_validation: int | None = None,
) -> None:
    """Train and measure what the ledger does not have yet.

    Args:
        name: The recipe.
        changes: JSON objects, one per cell.
        tokenizer: For a model over codes, in place of the recipe's; its own config is used.
        data: The folder with the data set's files; otherwise as for training.
        max_seconds: How long each model is trained.
        num_samples: Images to draw from each; with 0 only an exact likelihood is measured.
        num_validation: Images of the validation split to measure exact likelihoods on; all of it
            without.
    """
    recipe = find_recipe(name)
    dataset = load_dataset(recipe.dataset, data)
    if num_validation is not None:
        dataset = replace(dataset, val=dataset.val.spaced(num_validation))
    quality = Quality(dataset, num_samples) if num_samples else None
    config, more = recipe.model, {}
    if tokenizer is not None:
        config = replace(config, tokenizer=checkpoint.load(find_weights(tokenizer)).config)
        more = {"tokenizer": tokenizer}

    def measure(model: Any, seed: int) -> Figures:
        if quality is None:
            return {}
        if not isinstance(model, GenerativeModel):
            return coded_figures(model, quality)
        images, labels = quality.draw(model, seed)
        found = precision_recall(quality.reference, quality.features(images))
        return {
            **quality.judged(images, labels),
            **{f"{name}, %": 100 * value for name, value in found.items()},
            "drawn images/s": sampling_speed(model, 256, repeats=1),
        }

    exact = True if config.build().likelihood == "exact" else None
    for seed in seeds:
        for change in map(json.loads, changes):
            changed = replace(
                recipe,
                name="trial",
                model=from_json(type(config), asdict(config) | change),
                tokenizer=tokenizer or recipe.tokenizer,
                max_seconds=max_seconds,
                epochs=None,
            )
            before = asdict(config)
            words = [f"{field} {value} (from {before[field]})" for field, value in change.items()]
            settings = {"change": ", ".join(words) or "none", "seconds": max_seconds, **more}
            run_cell(f"changes-{name}", settings, changed, dataset, seed, measure, exact=exact)


if __name__ == "__main__":
    start(main, __doc__)
