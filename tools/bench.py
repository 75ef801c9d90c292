"""How fast drawing gets: models in several settings, raced in one run.

    python -m tools.bench

A *subject* draws in one setting: plain (eager, with the key-value cache, in float32 unless the
model uses bfloat16 by default), compiled, in bfloat16, or the old way, without a cache, where
every pixel costs a pass over all before it. Batches of several sizes show the gain of batching.
Where a drawing would take too long, a part of it that costs as much as any other is timed and
the rest extrapolated; the setting says so.
"""

import copy
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain, count, islice
from pathlib import PurePath
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import Positional, arg

from mnist_transformer.evaluation import ledger
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.loading import load, load_model, shipped
from mnist_transformer.networks.drawing import draw_categorical
from mnist_transformer.networks.transformer import Transformer
from mnist_transformer.options import Sampling
from mnist_transformer.recipes import RECIPES
from mnist_transformer.utils.devices import fast_autocast, fast_dtype, find_device, to_device
from mnist_transformer.utils.files import write_atomic
from mnist_transformer.utils.terminal import complain, exit_code, say
from tools import peers as others
from tools import trials
from tools.race import BFLOAT16, COMPILED, PLAIN, THE_OLD_WAY, Draw, Subject, Tell, plot, race

OLD_MODEL = "mnist-pixel-3.5m"
NUM_PASSES = 8  # that are timed; the old way takes one per pixel


def load_shipped(device: str | None = None) -> dict[str, GenerativeModel]:
    """Every shipped model that draws MNIST, by name; errors as in ``load``."""
    models = {name: load_model(name, device) for name in shipped()}
    return {
        name: model
        for name, model in models.items()
        if isinstance(model, GenerativeModel) and model.config.data.name == "mnist"
    }


def load_models(names: Sequence[str], device: str | None) -> dict[str, GenerativeModel]:
    """Models by name: the old way's first, with random weights where it is not shipped.

    Args:
        names: as ``load`` takes them; if empty, all shipped models that draw.

    Raises:
        ValueError: as in ``load``.
    """
    models = {PurePath(name).name: load(name, device) for name in names}
    if not names:
        models = load_shipped(device)
    if OLD_MODEL in shipped():
        old = {OLD_MODEL: models.get(OLD_MODEL) or load(OLD_MODEL, device)}
    else:
        untrained = to_device(RECIPES[OLD_MODEL].model.build(), device)
        old = {f"{OLD_MODEL} (random weights)": untrained}
    return old | models


def settings_of(name: str, model: GenerativeModel, tell: Tell) -> list[Subject]:
    """A model in each of its settings; ``tell`` is called for one that cannot be measured."""
    draw = _drawer(model)
    subjects = [Subject(name, PLAIN, model.num_parameters, draw, draw)]
    if type(model.config) is type(RECIPES[OLD_MODEL].model):
        subjects.insert(0, _full_passes(name, model))
    if fast_dtype(model.device) != torch.bfloat16:
        tell(f"{name} in bfloat16: not measured, {model.device} has no instructions for it")
    elif "sampler" not in model.honours:  # those that honour it draw in bfloat16 anyway
        rounded = _drawer(model, in_bfloat16=True)
        subjects.append(Subject(name, BFLOAT16, model.num_parameters, rounded, draw))
    compiled = copy.deepcopy(model)
    transformer = getattr(compiled, "transformer", None)
    if isinstance(transformer, Transformer):
        transformer.compile(dynamic=True)
        fast = _drawer(compiled)
        subjects.append(Subject(name, COMPILED, model.num_parameters, fast, draw, warm_up=True))
    return subjects


def _drawer(model: GenerativeModel, in_bfloat16: bool = False) -> Draw:
    """A function that draws other images at every call, all classes in turn."""
    seeds = count()

    def draw(num_images: int) -> None:
        mine = list(islice(seeds, num_images))
        with fast_autocast(model.device) if in_bfloat16 else nullcontext():
            model.sample([seed % model.num_classes for seed in mine], mine)

    return draw


def _full_passes(name: str, model: Any, num_passes: int = NUM_PASSES) -> Subject:
    """The old way: every pixel by a pass over the class and all pixels before it.

    Passes of evenly spread lengths are timed, and each stands for those around it.
    """
    num_passes = min(num_passes, model.num_values)
    lengths = [1 + int((i + 0.5) * model.num_values / num_passes) for i in range(num_passes)]

    @torch.inference_mode()
    def draw(num_images: int) -> None:
        values = torch.randint(
            model.config.data.num_levels, (num_images, model.num_values), device=model.device
        )
        cond = torch.arange(num_images, device=model.device) % model.num_classes
        uniform = torch.rand(num_images, device=model.device)
        for length in lengths:
            logits = model.logits(values[:, :length], cond)
            draw_categorical(logits[:, -1], uniform, Sampling())

    return Subject(
        name,
        f"{THE_OLD_WAY}, {num_passes} of {model.num_values} passes timed",
        model.num_parameters,
        draw,
        draw,
        share=num_passes / model.num_values,
        largest_batch=16,
    )


def main(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODELS")] = (),
    batch_sizes: tuple[int, ...] = (1, 16, 256),
    seconds: float = 10.0,
    peers: bool = True,
    device: str | None = None,
    record: bool = True,
) -> None:
    """Race models at drawing: batches, cache, bfloat16, compiled, the old way, other libraries.

    Args:
        models: Shipped models, checkpoints or training runs' folders; otherwise all that are
            shipped. The old way, a full pass for each pixel, is raced too.
        batch_sizes: How many images to draw at once.
        seconds: About how long each measurement takes.
        peers: Race models of other libraries too, of the size of mnist-pixel-3.5m and with
            random weights; needs the extra [bench].
        device: Such as cpu, cuda or mps; otherwise the best available.
        record: Append the figures to results/ledger.jsonl, and draw results/bench/plot.png.
    """
    for size in batch_sizes:
        if size < 1:
            raise ValueError(f"a batch size is {size}, expected 1 or more")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds are {seconds}, expected a finite number above 0")
    if peers:
        others.check_installed()
    place = find_device(device)
    loaded = load_models(models, device)
    subjects = chain.from_iterable(settings_of(name, m, complain) for name, m in loaded.items())
    rows = race(
        chain(subjects, others.peers(place) if peers else ()),
        batch_sizes,
        place,
        seconds=seconds,
        command=ledger.clean_command(["python", "-m", "tools.bench", *sys.argv[1:]]),
        tell=complain,
    )
    for row in rows:
        figures = row["metrics"]["figures"]
        subject = ", ".join(str(value) for value in row["metrics"]["settings"].values())
        say(f"{subject}: {figures['images/s']:.4g} images/s, {figures['p50, s']:.3g} s")
        if record:
            ledger.append(row)
    if record:
        measured = trials.of("bench", ledger.latest(ledger.results_folder() / "ledger.jsonl"))
        path = ledger.results_folder() / "bench" / "plot.png"
        write_atomic(path, plot(measured))
        say(f"saved {path}")


if __name__ == "__main__":
    sys.exit(exit_code("tools.bench", lambda: tyro.cli(main, prog="python -m tools.bench")))
