"""Models by name: shipped weights, a checkpoint, a training run's folder, or the Hub."""

import os
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path

import torch

from mnist_transformer.models import checkpoint
from mnist_transformer.models.base import GenerativeModel, Model
from mnist_transformer.options import FLAGSHIP
from mnist_transformer.utils.checks import check_name
from mnist_transformer.utils.devices import check_defaults, to_device

WEIGHTS = Path(__file__).parent.parent / "weights"


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def find_weights(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a model, named as in ``load``. Raises ValueError where there is none."""
    name, names = os.fspath(name_or_path), shipped()
    if name not in names:
        if name.startswith("hf://"):
            try:
                with redirect_stdout(None):  # on a wrong variable it prints a line of its own
                    from mnist_transformer.models import hub
            except ValueError as error:
                place = f"HF_ENDPOINT, {os.environ.get('HF_ENDPOINT')!r},"
                raise ValueError(f"{place} or another HF_ variable is wrong: {error}") from error
            return hub.download(name)
        path = Path(name, "model.safetensors") if os.path.isdir(name) else Path(name)
        if path.is_file():
            return path
        if path.suffix == ".safetensors" or path.name != name:
            raise ValueError(f"checkpoint {path} does not exist")
        from mnist_transformer.recipes import RECIPES

        if name in RECIPES:
            raise ValueError(
                f"{name} is a recipe whose weights are not shipped: "
                f"train it with `mnist-transformer train {name}` and give the checkpoint's path"
            )
    check_name("model", name, names)
    return WEIGHTS / f"{name}.safetensors"


@torch.inference_mode(False)  # weights made in inference mode have no gradients
def load_model(name_or_path: str | os.PathLike[str], device: str | None = None) -> Model:
    """A model of any kind in eval mode; arguments and errors as in ``load``."""
    check_defaults()
    with torch.autocast("cpu", enabled=False):  # a model may load another while it is measured
        return to_device(checkpoint.load(find_weights(name_or_path)), device)


def load(
    name_or_path: str | os.PathLike[str] = FLAGSHIP, device: str | None = None
) -> GenerativeModel:
    """A model ready to draw.

    Args:
        name_or_path: a shipped model, a .safetensors checkpoint, a training run's folder, or
            hf://owner/name on the Hugging Face Hub.
        device: such as "cpu" or "cuda:1"; by default the best here: cuda, mps, else cpu.

    Raises:
        ValueError: an unknown name or device, a damaged file, or a model that does not draw.
    """
    model = load_model(name_or_path, device)
    if not isinstance(model, GenerativeModel):
        raise ValueError(f"{name_or_path} is a {type(model).__name__.lower()}: it does not draw")
    return model


@lru_cache(2)
def companion(name_or_path: str | Path, device: str) -> GenerativeModel:
    """A frozen model that something else uses, loaded once per device: an escape, a teacher."""
    return load(name_or_path, device).requires_grad_(False)
