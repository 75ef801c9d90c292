"""Everything this project ever trained, by name: one aligned table of frozen recipes."""

from dataclasses import dataclass, replace
from typing import Any

from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.models.patch import PatchConfig


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained. Exactly one of max_seconds and epochs is set.

    Args:
        model: the family's frozen config.
        dataset: a name known to ``data.load_dataset``.
        batch_size: images a step over all processes.
        muon_lr, adamw_lr: peak learning rates of the hidden matrices and of all the rest.
        max_seconds, epochs: length of the run; progress runs from 0 to 1 over it.
        warmup: fraction of the run over which the rates rise linearly.
        decay: fraction of the run, at its end, over which they fall to zero.
        ema: horizon of the weights' exponential moving average, as a fraction of the steps
            made so far; 0 keeps none.
        clip: largest norm of the gradient.
        compile: train through torch.compile, where there is a C++ compiler.
    """

    name: str
    model: Any
    dataset: str = "mnist"
    batch_size: int = 64
    muon_lr: float = 0.02
    adamw_lr: float = 2e-3
    weight_decay: float = 0.0
    max_seconds: float | None = None
    epochs: float | None = None
    warmup: float = 0.02
    decay: float = 0.5
    ema: float = 0.0
    clip: float = 1.0
    compile: bool = False
    about: str = ""


_patch = Recipe("mnist-patch", PatchConfig(), max_seconds=150 * 60)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _patch,
        replace(_patch, name="mnist-patch-speedrun", max_seconds=20 * 60),
        # 4,000 real digits that a package carries: to try training with no MNIST at hand.
        replace(_patch, name="mnist-patch-5k", dataset="mnist-5k", max_seconds=10 * 60),
        Recipe(
            "mnist-cnn",
            ClassifierConfig(),
            batch_size=128,
            adamw_lr=3e-3,
            epochs=10,
            decay=0.8,
            about="the classifier that judges drawn digits",
        ),
    )
}
