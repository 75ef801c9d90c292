"""eval, bench, list and report."""

import itertools
import math
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import (
    OptionalPath,
    OptionalStr,
    find_recipe,
    typed_command,
)
from mnist_transformer.utils.terminal import complain, say, screen, stages


def evaluate(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    data: OptionalPath = None,
    device: OptionalStr = None,
    num_samples: int = 10_000,
    record: bool = True,
) -> None:
    """Measure a model as the README's tables do: likelihood, drawn digits, copies, speed.

    Args:
        model: A shipped model, a checkpoint or a training run's folder.
        data: The folder with MNIST's four files; otherwise what MNIST_TRANSFORMER_DATA names,
            else a cache that a download fills.
        device: Such as cpu, cuda or mps; otherwise the best there is.
        num_samples: Digits to draw for each of three seeds.
        record: Append the figures to results/ledger.jsonl and save a sheet of samples.
    """
    from mnist_transformer.data import load_dataset
    from mnist_transformer.evaluation import ledger
    from mnist_transformer.evaluation.protocol import SEEDS, check_measurable, sample_sheet
    from mnist_transformer.evaluation.protocol import evaluate as measure
    from mnist_transformer.models import checkpoint, loading
    from mnist_transformer.models.base import GenerativeModel
    from mnist_transformer.training.info import read_info
    from mnist_transformer.utils import images
    from mnist_transformer.utils.devices import to_device

    path = loading.find_weights(model)
    training = read_info(path)
    subject = to_device(checkpoint.load(path), device)
    check_measurable(subject, num_samples, SEEDS)
    with stages() as report:
        row = measure(
            subject,
            training.recipe,
            load_dataset(find_recipe(training.recipe).dataset, data),
            num_samples=num_samples,
            report=report,
            images_seen=training.images_seen,
            seconds=training.seconds,
            curve=training.curve,
            command=typed_command(),
        )
    screen.print_json(data=row["metrics"])
    if not record:
        return
    say(f"recorded in {ledger.append(row)}")
    if isinstance(subject, GenerativeModel):
        sheet = ledger.results_folder() / training.recipe / "samples.png"
        images.save_png(images.enlarge(images.grid(sample_sheet(subject), columns=10)), sheet)
        say(f"saved {sheet}")


def bench(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODELS")] = (),
    batch_sizes: tuple[int, ...] = (1, 16, 256),
    seconds: float = 10.0,
    peers: bool = True,
    device: OptionalStr = None,
    record: bool = True,
) -> None:
    """Race models at drawing: batches, cache, bfloat16, compiled, the old way, other libraries.

    Args:
        models: Shipped models, checkpoints or training runs' folders; otherwise all that are
            shipped. The old way, a full pass a pixel, runs besides.
        batch_sizes: How many images to draw at once.
        seconds: About how long each measurement takes.
        peers: Race models of other libraries too, of the size of mnist-pixel-3.5m and with
            random weights; needs the extra [bench].
        device: Such as cpu, cuda or mps; otherwise the best there is.
        record: Append the figures to results/ledger.jsonl, and draw results/bench/plot.png.
    """
    for size in batch_sizes:
        if size < 1:
            raise ValueError(f"a batch size is {size}, expected 1 or more")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds are {seconds}, expected a finite number above 0")
    from mnist_transformer.evaluation import ledger
    from mnist_transformer.utils.files import write_atomic
    from tools import bench as racing
    from tools import peers as others
    from tools import trials

    if peers:
        others.check_installed()
    loaded = racing.load_models(models, device)
    place = next(iter(loaded.values())).device
    ours = (racing.settings_of(name, model, complain) for name, model in loaded.items())
    rows = racing.race(
        itertools.chain(*ours, others.peers(place) if peers else ()),
        batch_sizes,
        place,
        seconds=seconds,
        command=typed_command(),
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
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, racing.plot(measured))
        say(f"saved {path}")


def list_models() -> None:
    """List the models: size, figures, what they can do and how, and whether they are shipped."""
    from collections import defaultdict

    import torch
    from rich.table import Column, Table

    from mnist_transformer.evaluation import ledger
    from mnist_transformer.models.base import GenerativeModel, Tokenizer
    from mnist_transformer.models.classifier import Classifier
    from mnist_transformer.models.prompted import Prompted
    from mnist_transformer.models.reader import Reader
    from mnist_transformer.recipes import RECIPES

    measured = ledger.latest()
    from mnist_transformer.models import loading

    shipped = loading.shipped()
    rest = ("size", "test bits/dim", "weights", "does", "about")
    table = Table(Column("model", no_wrap=True), *rest, box=None)
    drawn_with = defaultdict(list)  # by the options that they use
    for name, recipe in RECIPES.items():
        with torch.device("meta"):  # only its size is wanted
            model = recipe.model.build()
        row = measured.get(name)
        bits = row and row["metrics"].get("bits_per_dim")
        does = [
            word
            for word, kind in (
                ("reads digits", Classifier),
                ("reads prompts", Prompted | Reader),
                ("encodes", Tokenizer),
                ("draws", GenerativeModel),
            )
            if isinstance(model, kind)
        ]
        table.add_row(
            name,
            # Of the model that was measured: its recipe may have changed since.
            f"{(row['parameters'] if row else model.num_parameters) / 1e6:.1f}M",
            f"{'' if row['exact'] else '≤ '}{bits:.3f}" if row and bits else "",
            "shipped" if name in shipped else "to be trained",
            ", ".join(does),
            recipe.about,
        )
        if isinstance(model, GenerativeModel):
            drawn_with[", ".join(sorted(model.honours))].append(name)
    screen.print(table)
    say("\nHow they can be told to draw:")
    for options, names in drawn_with.items():
        say(f"  {options}: {', '.join(names)}")


def report() -> None:
    """Render the tables of README.md and docs/ from the ledger, and collect the runs' plots."""
    from tools.report import report as render

    written = render()
    for path in written:
        say(f"wrote {path}")
    if not written:
        say("everything is up to date")
