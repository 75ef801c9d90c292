"""MNIST Transformer: small generative image models, trained, measured and ready to draw.

    from mnist_transformer import sample
    images = sample([3, 1, 4], seeds=range(3))  # uint8 (3, 1, 28, 28)

Importing the package is cheap: torch is imported by the first call that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_transformer.data import load_dataset
    from mnist_transformer.evaluation.protocol import evaluate
    from mnist_transformer.models.loading import load
    from mnist_transformer.options import Keep, Sampling
    from mnist_transformer.training.loop import train

__version__ = "0.1.0"
__all__ = ["Keep", "Sampling", "__version__", "evaluate", "load", "load_dataset", "train"]

_HOMES = {
    "Keep": "options",
    "Sampling": "options",
    "evaluate": "evaluation.protocol",
    "load": "models.loading",
    "load_dataset": "data",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
