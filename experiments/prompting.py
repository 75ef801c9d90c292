"""From a sentence to a number: one model from scratch, or a pretrained language model's states?

    mnist-transformer train mnist-prompt-scratch
    mnist-transformer prompts encode && mnist-transformer train mnist-prompt-smollm2
    python -m experiments.prompting                # measures both
    python -m experiments.prompting --sizes        # trains both on fewer prompts, too

A prompt is answered rightly if the judge reads every drawn digit as the answer's, in order, and
no other number of them was drawn; one that is out of scope, if it is refused. ``read right`` asks
the same of the digits that the system meant to draw.
"""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

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
from mnist_transformer.data import Dataset, load_dataset, states
from mnist_transformer.data.prompted import SEEDS, Prompts, with_prompts, written_prompts
from mnist_transformer.evaluation import ledger
from mnist_transformer.evaluation.protocol import SEEDS_APART
from mnist_transformer.models import loading
from mnist_transformer.models.base import GenerativeModel, Model, in_batches
from mnist_transformer.options import Sampling
from mnist_transformer.prompting import asking, llm
from mnist_transformer.prompting import corpus as prompt_corpus
from mnist_transformer.prompting import grammar as prompt_grammar
from mnist_transformer.prompting.prompts import Prompt
from mnist_transformer.recipes import RECIPES
from tools import trials

SCRATCH, SMOLLM2 = "mnist-prompt-scratch", "mnist-prompt-smollm2"
SPLITS = {
    "seen templates": "train",
    "held-out templates": "held_out_templates",
    "held-out sums": "held_out_sums",
    "typos": "typos",
    "out of scope": "out_of_scope",
}
WRITTEN = "LLM-written"
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
    corpus: Path | None = None,
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
        corpus: Prompts that a language model wrote, from `prompts write`; otherwise the shipped
            ones. Those kept for testing are asked.
        seed: Decides the prompts and the digits drawn.
        sizes: Instead, train both systems on fewer prompts.
        numbers: How many prompts these are.
        max_seconds: How long each of those is trained.
        again: Measure systems that the ledger has as well, as after one was trained anew.
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


def kinds(num_prompts: int, seed: int, corpus: Path | None) -> dict[str, list[Prompt]]:
    """Prompts by kind; those of a language model only where there are some."""
    found = {}
    for kind, split in SPLITS.items():
        stream = prompt_grammar.prompts(split, SEEDS["test"] + seed)
        if split == "train":
            stream = (prompt for prompt in stream if prompt.answer is not None)
        found[kind] = list(itertools.islice(stream, num_prompts))
    written = prompt_corpus.read_corpus(corpus) if corpus else written_prompts()
    for_testing = [prompt for prompt in written if prompt_corpus.is_for_testing(prompt)]
    return found | ({WRITTEN: for_testing[:num_prompts]} if for_testing else {})


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
    training = ledger.read_training(loading.find_weights(model))
    name = training.recipe
    cells = [
        {"system": name, "prompts": kind, "guidance": guidance}
        for kind in asked_for
        for guidance in guidances
    ]
    todo = [cell for cell in cells if not is_done("prompting", cell, seed, again=again)]
    costs = [{"system": name, "guidance": guidance} for guidance in guidances]
    costs_todo = [
        cell for cell in costs if not is_done("prompting-systems", cell, seed, again=again)
    ]
    if not todo and not costs_todo:
        return
    asked = asking.load(model)
    details = {
        "parameters": sum(part.num_parameters for part in parts(asked)),
        "images_seen": training.images_seen,
        "seconds": training.seconds,
    }
    for cell in todo:
        figures = accuracy(asked, asked_for[cell["prompts"]], quality, cell["guidance"], seed)
        record("prompting", cell, figures, asked.drawer, seed, **details)
    for cell in costs_todo:
        minutes = None if training.seconds is None else training.seconds / 60
        figures = {"training, minutes": minutes, **cost(asked, quality, cell["guidance"], seed)}
        record("prompting-systems", cell, figures, asked.drawer, seed, **details)
    save_plot(examples(asked, seed), f"prompting/{name}")


def parts(asked: asking.Asked) -> list[Model]:
    """The project's own models of a system."""
    return [asked.drawer, *([asked.reader] if isinstance(asked, asking.ThroughLLM) else [])]


def accuracy(
    asked: asking.Asked, prompts: list[Prompt], quality: Quality, guidance: float, seed: int
) -> Figures:
    """The share of prompts answered rightly, in what was meant and in what was drawn."""
    how, read_right, drawn_right = Sampling(guidance=guidance), 0, 0
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        texts = [prompt.text for prompt in part]
        answers = asked.read(texts)
        count = sum(map(len, answers))
        start = seed * SEEDS_APART + 2 * first  # two digits a prompt at most
        images = asked.draw(texts, answers, range(start, start + count), how)
        seen = in_batches(quality.judge, quality.judge.logits, images) if count else torch.empty(0)
        digits = iter(seen.argmax(-1).tolist() if count else ())
        for prompt, answer in zip(part, answers, strict=True):
            drawn = tuple(itertools.islice(digits, len(answer)))
            read_right += answer == prompt.digits
            drawn_right += drawn == prompt.digits
    total = len(prompts)
    return {
        "prompts": total,
        "read right, %": 100 * read_right / total,
        "drawn right, %": 100 * drawn_right / total,
    }


def cost(asked: asking.Asked, quality: Quality, guidance: float, seed: int) -> Figures:
    """Size on disk, seconds to a picture when warm, and what single digits look like."""
    how, weights = Sampling(guidance=guidance), sum(2 * p.num_parameters for p in parts(asked))
    if isinstance(asked, asking.ThroughLLM):
        weights += llm.weights(asked.reader.config.llm).stat().st_size

    def answer(text: str) -> float:
        start = time.perf_counter()
        answers = asked.read([text])
        asked.draw([text], answers, range(len(answers[0])), how)
        return time.perf_counter() - start

    answer("Draw a 7")
    seconds = [answer(text) for text in ["Show me 2 + four", "Imagine one plus three"] * 3]
    labels = torch.arange(quality.num_samples) % 10
    images = []
    for batch in labels.split(4 * BATCH):
        texts = [f"Draw {'an' if digit == 8 else 'a'} {digit}" for digit in batch.tolist()]
        first = seed * SEEDS_APART + sum(map(len, images))
        seeds = range(first, first + len(batch))
        images.append(asked.draw(texts, [(digit,) for digit in batch.tolist()], seeds, how))
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
    """Train both systems for equally long on fewer prompts; how many are read rightly then."""
    encoded = load_dataset("smollm2-states") if states.FOLDER.is_dir() else None
    model: llm.LLM | None = None

    def reading(trained: Model, _: int) -> Figures:
        nonlocal model
        if not isinstance(trained, GenerativeModel):  # it reads, and another model draws
            model = model or llm.LLM(trained.config.llm, trained.config.layer)
            generator = loading.load(trained.config.generator)
            asked: asking.Asked = asking.ThroughLLM(generator, trained, model)
        else:
            asked = asking.ByItself(trained)
        return {f"{kind}, %": read_right(asked, some) for kind, some in asked_for.items()}

    for number in numbers:
        cells: list[tuple[str, Dataset]] = [(SCRATCH, with_prompts(dataset, Prompts(number)))]
        if encoded is not None and len(encoded.train) >= number:
            cells.append((SMOLLM2, replace(encoded, train=encoded.train.part(0, number))))
        for name, part in cells:
            settings = {"system": name, "training prompts": number, "seconds": max_seconds}
            recipe = replace(RECIPES[name], name="trial", max_seconds=max_seconds)
            run_cell("prompting-size", settings, recipe, part, seed, reading, exact=None)


def read_right(asked: asking.Asked, prompts: list[Prompt]) -> float:
    answers = asked.read([prompt.text for prompt in prompts])
    right = (a == prompt.digits for a, prompt in zip(answers, prompts, strict=True))
    return 100 * sum(right) / len(prompts)


def examples(asked: asking.Asked, seed: int) -> Figure:
    """What a system answers to a few sentences, the first drawing of each, guided."""
    figure = Figure(figsize=(9, 1.9), layout="constrained")
    for axes, text in zip(figure.subplots(1, len(EXAMPLES)), EXAMPLES, strict=True):
        digits = asked.answer(text)
        drawn = asked.draw([text], [digits], range(seed, seed + len(digits)), Sampling(guidance=2))
        if digits:
            axes.imshow(torch.cat([image[0] for image in drawn], 1), cmap="gray")
        else:
            axes.text(0.5, 0.5, "refused", ha="center", va="center")
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.set_title(text, fontsize=8)
    return figure


def plot() -> Figure:
    """Accuracy by kind of prompt; a colour a system and guidance."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    groups = trials.by_settings(results("prompting"))
    names: list[str] = []
    for group in groups:
        settings = group[0]["metrics"]["settings"]
        label = f"{settings['system']}, guidance {settings['guidance']:g}"
        color = f"C{names.index(label) if label in names else len(names)}"
        values = trials.figures_of(group, "drawn right, %")
        axes.plot(
            values,
            [settings["prompts"]] * len(values),
            "o",
            color=color,
            alpha=0.7,
            label=None if label in names else label,
        )
        names += [label] if label not in names else []
    axes.set(xlabel="drawn right, %")
    axes.grid(alpha=0.3)
    if groups:
        axes.legend()
    return figure


def plot_by_number() -> Figure:
    """Accuracy by the number of training prompts, a panel a kind of prompt, a line a system."""
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
