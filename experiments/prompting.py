"""From a sentence to a number: one model from scratch, or a pretrained language model's states?

    mnist-transformer train mnist-prompt-scratch
    mnist-transformer prompts encode && mnist-transformer train mnist-prompt-smollm2
    python -m experiments.prompting                # measures both
    python -m experiments.prompting --sizes        # trains both on fewer prompts, too

A prompt is ``drawn right`` if the judge reads the drawn digits as the answer, in order. A prompt
that is out of scope has to be refused. ``read right`` asks the same of the digits that the system
meant to draw.
"""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch
from matplotlib.figure import Figure

from experiments.common import (
    Figures,
    Quality,
    is_done,
    record,
    results,
    run_cell,
    save_plot,
    start,
)
from mnist_transformer.data import Dataset, load_dataset, prompted, states
from mnist_transformer.evaluation.protocol import SEEDS_APART
from mnist_transformer.models import loading
from mnist_transformer.models.base import Model, in_batches
from mnist_transformer.options import Sampling
from mnist_transformer.prompting import asking, grammar, llm
from mnist_transformer.prompting.prompts import Prompt
from mnist_transformer.recipes import RECIPES
from mnist_transformer.training.info import read_info
from tools import trials

SCRATCH, SMOLLM2 = "mnist-prompt-scratch", "mnist-prompt-smollm2"
SPLITS = {
    "seen templates": "train",
    "held-out templates": "held_out_templates",
    "held-out sums": "held_out_sums",
    "typos": "typos",
    "out of scope": "out_of_scope",
}
BATCH = 64  # prompts drawn at once
EXAMPLES = (
    "Show me 2 + four",
    "What's a 9 look like?",
    "Imagine one plus three",
    "pls drw twenty minus 8",
    "six times seven",
    "Draw a cat",
)


def main(
    data: Path | None = None,
    models: tuple[str, ...] = (),
    num_prompts: int = 1000,
    guidances: tuple[float, ...] = (1.0, 2.0),
    corpus: Path = prompted.WRITTEN,
    seed: int = 0,
    sizes: bool = False,
    numbers: tuple[int, ...] = (1_000, 5_000, 20_000, 60_000),
    max_seconds: float = 600.0,
    again: bool = False,
) -> None:
    """Measure what the ledger does not have yet, then draw the plot.

    Args:
        data: The folder with MNIST's four files; otherwise as for training.
        models: Trained systems; otherwise the shipped ones, else those in runs/.
        num_prompts: How many prompts of each kind.
        guidances: Guidance scales to draw with.
        corpus: Prompts by a language model; those that are kept for testing are asked.
        seed: Decides the prompts and the digits drawn.
        sizes: Instead, train both systems on fewer prompts.
        numbers: Numbers of training prompts, with --sizes.
        max_seconds: How long each system is trained, with --sizes.
        again: Also measure systems that the ledger has, for one that was retrained.
    """
    dataset = load_dataset("mnist", data)
    asked_for = kinds(num_prompts, seed, corpus)
    if sizes:
        by_number(dataset, asked_for, numbers, max_seconds, seed)
        save_plot(plot_by_number(), "prompting-size")
    else:
        quality = Quality(dataset, num_prompts)
        for model in models or tuple(filter(None, map(trained, (SCRATCH, SMOLLM2)))):
            measure(model, asked_for, quality, guidances, seed, again)
        save_plot(plot(), "prompting")


def kinds(num_prompts: int, seed: int, corpus: Path) -> dict[str, list[Prompt]]:
    """Prompts by kind; those of a language model only if some are for testing."""
    found = {}
    for kind, split in SPLITS.items():
        stream = grammar.prompts(split, prompted.SEEDS["test"] + seed)
        chosen = (p for p in stream if split != "train" or p.answer is not None)
        found[kind] = list(itertools.islice(chosen, num_prompts))
    written = list(filter(prompted.is_for_testing, prompted.read_prompts(corpus)))[:num_prompts]
    return found | ({"LLM-written": written} if written else {})


def trained(name: str) -> str | None:
    """Where a recipe's weights are: shipped, or in runs/."""
    if name in loading.shipped():
        return name
    return f"runs/{name}" if (Path("runs") / name / "model.safetensors").is_file() else None


def measure(
    model: str,
    asked_for: dict[str, list[Prompt]],
    quality: Quality,
    guidances: tuple[float, ...],
    seed: int,
    again: bool,
) -> None:
    """Accuracy by kind of prompt and guidance, what the system costs, and a few answers to see."""
    training = read_info(loading.find_weights(model))
    name = training.recipe
    cells: list[tuple[str, dict]] = [
        ("prompting", {"system": name, "prompts": kind, "guidance": guidance})
        for kind in asked_for
        for guidance in guidances
    ]
    cells += [("prompting-systems", {"system": name, "guidance": g}) for g in guidances]
    cells = [cell for cell in cells if not is_done(*cell, seed, again=again)]
    if not cells:
        return
    asked = asking.load(model)
    size = sum(part.num_parameters for part in parts(asked))
    details = {"parameters": size, "images_seen": training.images_seen, "seconds": training.seconds}
    for table, cell in cells:
        if table == "prompting":
            prompts = asked_for[cell["prompts"]]
            figures = accuracy(asked, prompts, quality, cell["guidance"], seed)
        else:
            minutes = None if training.seconds is None else training.seconds / 60
            figures = {"training, minutes": minutes, **cost(asked, quality, cell["guidance"], seed)}
        record(table, cell, figures, asked.drawer, seed, **details)
    save_plot(examples(asked, seed), f"prompting/{name}")


def parts(asked: asking.Asked) -> list[Model]:
    """The project's own models of a system."""
    return list(dict.fromkeys([asked.drawer, asked.reader]))  # a prompted model is both


def accuracy(
    asked: asking.Asked, prompts: list[Prompt], quality: Quality, guidance: float, seed: int
) -> Figures:
    """Shares of prompts that are read right and drawn right."""
    texts = [prompt.text for prompt in prompts]
    answers, images, how = asked.read(texts), [], Sampling(guidance=guidance)
    for first in range(0, len(prompts), BATCH):
        part = answers[first : first + BATCH]
        start = seed * SEEDS_APART + 2 * first  # an answer has two digits at most
        seeds = range(start, start + sum(map(len, part)))
        conditions = asked.conditions(texts[first : first + BATCH], part)
        images.append(asked.drawer.sample(conditions, seeds, how))
    judge, digits = quality.judge, iter(())
    if any(answers):
        digits = iter(in_batches(judge, judge.logits, torch.cat(images)).argmax(-1).tolist())
    drawn = [tuple(itertools.islice(digits, len(answer))) for answer in answers]
    return {
        "prompts": len(prompts),
        "read right, %": right(answers, prompts),
        "drawn right, %": right(drawn, prompts),
    }


def right(answers: list[tuple[int, ...]], prompts: list[Prompt]) -> float:
    """The share of prompts with the right answer, in percent."""
    return 100 * mean(a == prompt.digits for a, prompt in zip(answers, prompts, strict=True))


def cost(asked: asking.Asked, quality: Quality, guidance: float, seed: int) -> Figures:
    """Size on disk, seconds to a picture when warm, and the quality of single digits."""
    how, weights = Sampling(guidance=guidance), sum(2 * p.num_parameters for p in parts(asked))
    if asked.reader is not asked.drawer:
        weights += llm.weights(asked.reader.config.llm).stat().st_size

    def answer(text: str) -> float:
        start = time.perf_counter()
        answers = asked.read([text])
        asked.drawer.sample(asked.conditions([text], answers), range(len(answers[0])), how)
        return time.perf_counter() - start

    answer("Draw a 7")
    seconds = [answer(text) for text in ["Show me 2 + four", "Imagine one plus three"] * 3]
    labels, images = torch.arange(quality.num_samples) % 10, []
    for index in torch.arange(quality.num_samples).split(4 * BATCH):
        digits = [(digit,) for digit in labels[index].tolist()]
        texts = [f"Draw {'an' if digit == 8 else 'a'} {digit}" for (digit,) in digits]
        seeds = (seed * SEEDS_APART + index).tolist()
        images.append(asked.drawer.sample(asked.conditions(texts, digits), seeds, how))
    return {
        "weights, MB": weights / 1e6,
        "first picture warm, s": median(seconds),
        **quality.judged(torch.cat(images), labels),
    }


def by_number(
    dataset: Dataset,
    asked_for: dict[str, list[Prompt]],
    numbers: tuple[int, ...],
    max_seconds: float,
    seed: int,
) -> None:
    """Train both systems for equally long on fewer prompts; measure how many they read right."""
    encoded = load_dataset("smollm2-states") if states.FOLDER.is_dir() else None

    def reading(trained: Model, _: int) -> Figures:
        asked = asking.Asked(trained)
        return {
            f"{kind}, %": right(asked.read([prompt.text for prompt in some]), some)
            for kind, some in asked_for.items()
        }

    for number in numbers:
        cells: list[tuple[str, Dataset]] = [
            (SCRATCH, prompted.with_prompts(dataset, prompted.Prompts(number)))
        ]
        if encoded is not None and len(encoded.train) >= number:
            cells.append((SMOLLM2, replace(encoded, train=encoded.train.part(0, number))))
        for name, part in cells:
            settings = {"system": name, "training prompts": number, "seconds": max_seconds}
            recipe = replace(RECIPES[name], name="trial", max_seconds=max_seconds)
            run_cell("prompting-size", settings, recipe, part, seed, reading, exact=None)


def examples(asked: asking.Asked, seed: int) -> Figure:
    """A system's answers to a few sentences, the first drawing of each, guided."""
    figure = Figure(figsize=(9, 1.9), layout="constrained")
    for axes, text in zip(figure.subplots(1, len(EXAMPLES)), EXAMPLES, strict=True):
        digits = asked.answer(text)
        conditions, seeds = asked.conditions([text], [digits]), range(seed, seed + len(digits))
        drawn = asked.drawer.sample(conditions, seeds, Sampling(guidance=2))
        if digits:
            axes.imshow(torch.cat([image[0] for image in drawn], 1), cmap="gray")
        else:
            axes.text(0.5, 0.5, "refused", ha="center", va="center")
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.set_title(text, fontsize=8)
    return figure


def plot() -> Figure:
    """Accuracy by kind of prompt; one colour per system and guidance."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    points: dict[str, list[tuple[float, str]]] = {}
    for group in trials.by_settings(results("prompting")):
        settings = group[0]["metrics"]["settings"]
        label = f"{settings['system']}, guidance {settings['guidance']:g}"
        drawn_right = trials.figures_of(group, "drawn right, %")
        points.setdefault(label, []).extend((x, settings["prompts"]) for x in drawn_right)
    for label, found in points.items():
        axes.plot(*zip(*found, strict=True), "o", alpha=0.7, label=label)
    axes.set(xlabel="drawn right, %")
    axes.grid(alpha=0.3)
    if points:
        axes.legend()
    return figure


def plot_by_number() -> Figure:
    """Accuracy by the number of training prompts, one panel per kind, one line per system."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    rows = results("prompting-size")
    titles = [name for name in rows[0]["metrics"]["figures"] if name.endswith(", %")]
    for place, title in enumerate(titles):
        axes = figure.add_subplot(-(-len(titles) // 3), 3, place + 1)
        for system, marker in ((SCRATCH, "o-"), (SMOLLM2, "s-")):
            own = [r for r in rows if r["metrics"]["settings"]["system"] == system]
            numbers = [r["metrics"]["settings"]["training prompts"] for r in own]
            points = sorted(zip(numbers, trials.figures_of(own, title), strict=True))
            if points:
                axes.plot(*zip(*points, strict=True), marker, label=system)
        axes.set(title=title, xscale="log", ylim=(0, 100))
        axes.grid(alpha=0.3)
        if place >= len(titles) - 3:
            axes.set_xlabel("training prompts")
        if not place:
            axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    start(main, __doc__)
