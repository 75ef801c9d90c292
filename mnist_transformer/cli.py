"""Small generative image models: draw with them, train them, measure them."""

# One function a verb. Each imports what it needs when it runs, so that --help does not wait
# for torch. A user's mistake (ValueError) and the machine's (OSError) end in one sentence.

import difflib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

import mnist_transformer
from mnist_transformer.terminal import complain, say, screen, stages, training

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_transformer.models.base import GenerativeModel
    from mnist_transformer.recipes import Recipe
    from mnist_transformer.sampling import Sampling

PROG = "mnist-transformer"
MAX_BATCH = 256  # images drawn at once

# Options that may be left out; the metavar keeps "None" out of --help.
_GIVEN = "(optional)"
OptionalPath: TypeAlias = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint=_GIVEN)]
OptionalStr: TypeAlias = Annotated[str | None, arg(metavar="STR", help_behavior_hint=_GIVEN)]
OptionalInt: TypeAlias = Annotated[int | None, arg(metavar="INT", help_behavior_hint=_GIVEN)]
OptionalFloat: TypeAlias = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=_GIVEN)]


def draw(
    digits: Annotated[Positional[str], arg(metavar="DIGITS")],
    n: int = 1,
    model: str = "mnist-patch",
    seed: int = 0,
    temperature: float = 1.0,
    top_k: OptionalInt = None,
    top_p: float = 1.0,
    guidance: float = 1.0,
    num_steps: OptionalInt = None,
    sampler: OptionalStr = None,
    out: OptionalPath = None,
    gif: FlagCreatePairsOff[bool] = False,
    device: OptionalStr = None,
) -> None:
    """Draw digits, save them as a PNG file and show them in the terminal.

    Args:
        digits: What to draw: 3, or several digits side by side: 2026.
        n: How many times to draw it.
        model: A shipped model (`list` names them), a checkpoint or a training run's folder.
        seed: The same seed draws the same picture.
        temperature: Above 0; below 1 draws safer, above 1 wilder.
        top_k: Draw from this many of the likeliest values only.
        top_p: Draw from the likeliest values that make up this share, in (0, 1].
        guidance: Classifier-free guidance: 1 is plain, above 1 makes the class plainer.
        num_steps: In how many steps to draw, where the model leaves a choice.
        sampler: How diffusion takes its steps: euler, ddim, heun or ancestral.
        out: The PNG file to write, or a folder for it; otherwise DIGITS.png in this folder.
        gif: Also save a GIF that shows the drawing happen.
        device: cpu or cuda; otherwise a GPU where there is one.
    """
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"digits are {digits!r}, expected one or more of 0 to 9")
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    if gif and n * len(digits) > MAX_BATCH:
        raise ValueError(f"a GIF shows at most {MAX_BATCH} digits, got {n * len(digits)}")
    png, movie = _pictures(digits, out, gif)
    from mnist_transformer import images
    from mnist_transformer.sampling import Sampling

    how = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
        num_steps=num_steps,
        sampler=sampler,
    )
    drawer = mnist_transformer.load(model, device)
    drawn, canvases = _draw(drawer, [int(digit) for digit in digits] * n, seed, how)
    # A number reads along its row; single digits fill a square.
    columns = len(digits) if len(digits) > 1 else math.isqrt(n - 1) + 1
    picture = images.grid(drawn, columns)
    notes = {"Description": f"{digits} drawn by {Path(model).name}, seed {seed}, {how}"}
    images.save_png(images.enlarge(picture), png, notes)
    if gif:
        frames = [images.enlarge(images.grid(canvas, columns)) for canvas in canvases]
        images.save_gif(frames, movie)
    images.show(picture, screen)
    for path in (png, movie) if gif else (png,):
        say(f"saved {path}")


def train(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    out: OptionalPath = None,
    data: OptionalPath = None,
    device: OptionalStr = None,
    seed: int = 0,
    max_seconds: OptionalFloat = None,
    epochs: OptionalFloat = None,
    batch_size: OptionalInt = None,
    lr: OptionalFloat = None,
) -> None:
    """Train a recipe; after an interruption the same command goes on where it stopped.

    Args:
        recipe: The name of a recipe (`list` names them).
        out: The folder of the run; otherwise runs/RECIPE.
        data: The folder with MNIST's four files; otherwise what MNIST_TRANSFORMER_DATA names,
            else a cache that a download fills.
        device: Such as cpu, cuda or mps; otherwise the best there is.
        seed: The same seed trains the same model.
        max_seconds: Length of the run, instead of the recipe's.
        epochs: Length of the run, instead of the recipe's.
        batch_size: Images a step, instead of the recipe's.
        lr: Peak learning rate of AdamW, instead of the recipe's; Muon's follows in proportion.
    """
    chosen = _recipe(recipe)
    from mnist_transformer.train import train as run

    with training(recipe) as report:
        weights = run(
            chosen,
            out or Path("runs") / recipe,
            data=data,
            device=device,
            seed=seed,
            max_seconds=max_seconds,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            report=report,
        )
    say(f"saved {weights}")


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
        device: cpu or cuda; otherwise a GPU where there is one.
        num_samples: Digits to draw for each of three seeds.
        record: Append the figures to results/ledger.jsonl and save a sheet of samples.
    """
    from mnist_transformer import checkpoint, images, ledger
    from mnist_transformer.data import load_dataset
    from mnist_transformer.evaluate import evaluate as measure
    from mnist_transformer.evaluate import sample_sheet
    from mnist_transformer.models.base import GenerativeModel

    path = mnist_transformer.find_weights(model)
    notes = checkpoint.read_notes(path)
    name = notes.get("recipe", path.stem)
    subject = mnist_transformer.to_device(checkpoint.load(path), device)
    with stages() as report:
        row = measure(
            subject,
            name,
            load_dataset(_recipe(name).dataset, data),
            num_samples=num_samples,
            report=report,
            images_seen=int(notes["images"]) if "images" in notes else None,
            seconds=float(notes["seconds"]) if "seconds" in notes else None,
            curve=json.loads(notes["curve"]) if "curve" in notes else None,
            command=ledger.clean_command([PROG, *sys.argv[1:]]),
        )
    screen.print_json(data=row["metrics"])
    if not record:
        return
    say(f"recorded in {ledger.append(row)}")
    if isinstance(subject, GenerativeModel):
        sheet = ledger.results_folder() / name / "samples.png"
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
        device: cpu or cuda; otherwise a GPU where there is one.
        record: Append the figures to results/ledger.jsonl.
    """
    for size in batch_sizes:
        if size < 1:
            raise ValueError(f"a batch size is {size}, expected 1 or more")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds are {seconds}, expected a finite number above 0")
    from mnist_transformer import ledger, speed
    from mnist_transformer import peers as others

    if peers:
        others.check_installed()
    loaded = speed.load_models(models, device)
    place = next(iter(loaded.values())).device
    ours = (speed.settings_of(name, model, complain) for name, model in loaded.items())
    rows = speed.race(
        itertools.chain(*ours, others.peers(place) if peers else ()),
        batch_sizes,
        place,
        seconds=seconds,
        command=ledger.clean_command([PROG, *sys.argv[1:]]),
        tell=complain,
    )
    for row in rows:
        figures = row["metrics"]["figures"]
        subject = ", ".join(str(value) for value in row["metrics"]["settings"].values())
        say(f"{subject}: {figures['images/s']:.4g} images/s, {figures['p50, s']:.3g} s")
        if record:
            ledger.append(row)


def list_models() -> None:
    """List the models: size, figures, what they can do, and whether they are shipped."""
    import torch
    from rich.table import Column, Table

    from mnist_transformer import ledger
    from mnist_transformer.models.base import GenerativeModel, HasLikelihood, Tokenizer
    from mnist_transformer.recipes import RECIPES

    measured = ledger.latest()
    shipped = mnist_transformer.shipped()
    rest = ("size", "test bits/dim", "does", "options", "weights")
    table = Table(Column("model", no_wrap=True), *rest, box=None)
    for name, recipe in RECIPES.items():
        with torch.device("meta"):  # only its size is wanted
            model = recipe.model.build()
        row = measured.get(name)
        bits = row and row["metrics"].get("bits_per_dim")
        does = "reads digits"
        if isinstance(model, GenerativeModel | Tokenizer):
            does = "draws" if isinstance(model, GenerativeModel) else "encodes"
        table.add_row(
            name,
            f"{model.num_parameters / 1e6:.1f}M",
            f"{'' if row['exact'] else '≤ '}{bits:.3f}" if row and bits else "",
            f"{does}, likelihood" if isinstance(model, HasLikelihood) else does,
            " ".join(sorted(getattr(model, "honours", ()))),
            "shipped" if name in shipped else "to be trained",
        )
    screen.print(table)


def report() -> None:
    """Render the tables of README.md and docs/ from the ledger, and collect the runs' plots."""
    from mnist_transformer.report import report as render

    written = render()
    for path in written:
        say(f"wrote {path}")
    if not written:
        say("everything is up to date")


def prompts_show(
    split: Annotated[Positional[str], arg(metavar="SPLIT")] = "train",
    n: int = 10,
    seed: int = 0,
) -> None:
    """Show prompts of the grammar, each after the number it asks for; "-" is to be refused.

    Args:
        split: train, held_out_templates, held_out_sums, typos or out_of_scope.
        n: How many.
        seed: The same seed writes the same prompts.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    from mnist_transformer import prompt_grammar

    for prompt in itertools.islice(prompt_grammar.prompts(split, seed), n):
        say(f"{'-' if prompt.answer is None else prompt.answer:>2}  {prompt.text}")


def prompts_write(
    n: int,
    out: Annotated[Path, arg(metavar="FILE.jsonl")],
    model: str = "gpt-4.1-nano",
    base_url: str = "https://api.openai.com/v1",
    per_request: int = 10,
    temperature: float = 1.0,
    timeout: float = 60.0,
    seed: int = 0,
) -> None:
    """Have a language model write prompts; wrong ones are dropped. The same command goes on.

    The server's key is taken from the environment variable OPENAI_API_KEY.

    Args:
        n: How many different prompts the file is to hold.
        out: JSON lines, appended to; beside it a record of model, date and counts is kept.
        model: The model's name at the server.
        base_url: Any server with OpenAI's chat completions, such as http://localhost:8080/v1.
        per_request: How many prompts to ask for at once; 1 suits a small model.
        temperature: From 0 to 2; higher writes more variously and more wrongly.
        timeout: Seconds that one answer may take.
        seed: Decides which numbers and voices the model is asked for.
    """
    try:
        from mnist_transformer.prompt_writer import write_corpus
    except ModuleNotFoundError as missing:
        raise ValueError(
            f"prompts write needs {missing.name}: pip install 'mnist-transformer[prompts]'"
        ) from None
    from mnist_transformer import ledger

    with stages() as report:
        run = write_corpus(
            out,
            base_url=base_url,
            model=model,
            n=n,
            per_request=per_request,
            temperature=temperature,
            timeout=timeout,
            seed=seed,
            command=ledger.clean_command([PROG, *sys.argv[1:]]),
            report=report,
        )
    say(f"{out}: {run}")


def prompts(
    action: Annotated[
        Annotated[None, subcommand("show", constructor=prompts_show)]
        | Annotated[None, subcommand("write", constructor=prompts_write)],
        arg(name=""),
    ],
) -> None:
    """Prompts with their answer: `show` the grammar's, have a language model `write` more."""


VERBS: dict[str, Callable[..., None]] = {
    "draw": draw,
    "train": train,
    "eval": evaluate,
    "bench": bench,
    "list": list_models,
    "report": report,
    "prompts": prompts,
}


def parse_and_run(arguments: Sequence[str], verbs: dict[str, Callable[..., None]] = VERBS) -> None:
    """Call the verb that the arguments name; wrong ones raise SystemExit(2) with a message."""
    assert __doc__
    tyro.extras.subcommand_cli_from_dict(verbs, prog=PROG, description=__doc__, args=arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for an error, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        say(f"{PROG} {mnist_transformer.__version__}")
        return 0
    try:
        parse_and_run(arguments)
    except BrokenPipeError:  # `| head` has read enough; nothing may be flushed at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        complain(f"{PROG}: {place}{error.strerror or error}")
        return 2
    except ValueError as error:
        complain(f"{PROG}: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _recipe(name: str) -> "Recipe":
    from mnist_transformer.recipes import RECIPES

    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or list(RECIPES)
        raise ValueError(f"there is no recipe {name!r}; nearest: {', '.join(near)}")
    return RECIPES[name]


def _draw(
    model: "GenerativeModel", labels: list[int], seed: int, how: "Sampling"
) -> "tuple[Tensor, list[Tensor]]":
    """The finished images, and the canvases of the first batch as they came to be."""
    import torch

    done: list[Tensor] = []
    canvases: list[Tensor] = []
    num_steps, total = 0, None
    with stages() as report:
        for start in range(0, len(labels), MAX_BATCH):
            batch = labels[start : start + MAX_BATCH]
            for canvas in model.steps(batch, range(seed + start, seed + start + len(batch)), how):
                if start == 0:
                    canvases.append(canvas)
                num_steps += 1
                report("drawing", num_steps, total)
            done.append(canvas)
            # How many steps a batch takes is known after the first.
            total = len(canvases) * -(-len(labels) // MAX_BATCH)
    return torch.cat(done), canvases


def _pictures(digits: str, out: Path | None, gif: bool) -> tuple[Path, Path]:
    """Where the PNG and the GIF go. A name that the user did not choose never costs a file."""
    chosen = out is not None and not out.is_dir()
    png = out if out is not None and chosen else (out or Path()) / f"{digits}.png"
    if png.suffix.lower() != ".png":
        raise ValueError(f"out is {str(png)!r}, expected a name in .png (--gif adds the GIF)")
    movie = png.with_suffix(".gif")
    if not chosen:
        from mnist_transformer.images import is_ours

        for path in (png, movie) if gif else (png,):
            if path.exists() and not is_ours(path):
                raise ValueError(
                    f"{path} exists and was not drawn by {PROG}: name another file with --out"
                )
    return png, movie


if __name__ == "__main__":
    sys.exit(main())
