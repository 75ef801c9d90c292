"""How many steps does drawing take? Quality and speed by steps, sampler and guidance.

    python -m experiments.diffusion_steps --models mnist-ddpm --samplers euler heun ancestral
    python -m experiments.diffusion_steps --models mnist-mar --steps 1 2 4 8 16 25 49

Nothing is trained. With mnist-ddpm a step takes noise off the whole image; with mnist-mar it
draws a set of patches, each through the head's own steps (``--head-steps``) by the sampler.
"""

import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common import Quality, is_done, model_name, record, results, save_plot, start
from mnist_transformer.data import load_dataset
from mnist_transformer.evaluation import protocol as evaluate
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.loading import load
from mnist_transformer.options import Sampling
from mnist_transformer.utils.terminal import stages
from tools import trials

EXPERIMENT = "diffusion-steps"
SPEED = "drawn images/s"
FIGURES = ("class agreement, %", "fd_cnn")
BATCH_SIZE = 256


def main(
    models: tuple[str, ...] = ("mnist-ddpm",),
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 25, 50),
    samplers: tuple[str, ...] = ("euler",),
    guidances: tuple[float, ...] = (1.0, 2.0),
    head_steps: tuple[int, ...] = (10,),
    data: Path | None = None,
    seeds: tuple[int, ...] = (0,),
    num_samples: int = 2560,
    again: bool = False,
) -> None:
    """Measure what the ledger does not have yet, then draw the plot.

    Args:
        models: Shipped models, checkpoints or folders of runs.
        head_steps: Steps of the head of mnist-mar; other models have no head.
        data: The folder with MNIST's four files; otherwise as for training.
        num_samples: Digits to draw in each setting.
        again: Also measure what the ledger has, as after a model was retrained.
    """
    quality = Quality(load_dataset("mnist", data), num_samples)
    for path in models:
        model = load(path)
        name = model_name(path)
        has_head = hasattr(model.config, "head_steps")
        inner = head_steps if has_head else (0,)
        for cell in product(inner, seeds, samplers, guidances, steps):
            num_head_steps, seed, sampler, guidance, num_steps = cell
            if has_head:
                model.config = replace(model.config, head_steps=num_head_steps)
            how = Sampling(guidance=guidance, num_steps=num_steps)
            if "sampler" in model.honours:
                how = replace(how, sampler=sampler)
            measure(quality, model, name, how, num_head_steps, seed, again)
    save_plot(plot(), EXPERIMENT)


def measure(
    quality: Quality,
    model: GenerativeModel,
    name: str,
    how: Sampling,
    head_steps: int,
    seed: int,
    again: bool,
) -> None:
    """Draw and judge in one setting, unless it was done before; ``again`` repeats it."""
    settings = {
        "model": name,
        "sampler": how.sampler or trials.NOTHING,
        "guidance": how.guidance,
        "head steps": head_steps or trials.NOTHING,
        "steps": int(how.num_steps or 0),
    }
    if is_done(EXPERIMENT, settings, seed, again=again):
        return
    evaluate.draw_balanced(model, BATCH_SIZE, seed, how)  # a warm-up
    with stages() as report:
        started = time.perf_counter()
        images, labels = evaluate.draw_balanced(
            model, quality.num_samples, seed, how, batch_size=BATCH_SIZE, report=report
        )
        seconds = time.perf_counter() - started
    figures = {**quality.judged(images, labels), SPEED: len(images) / seconds}
    record(EXPERIMENT, settings, figures, model, seed)


def plot() -> Figure:
    """Quality by images/s, one line per model, sampler and guidance; steps at the points."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    lines: dict[str, list[tuple[int, list[float]]]] = {}
    for group in trials.by_settings(results(EXPERIMENT)):
        *kind, num_steps = group[0]["metrics"]["settings"].values()
        values = [trials.figures_of(group, figure_name) for figure_name in (SPEED, *FIGURES)]
        means = [sum(found) / len(found) for found in values]
        lines.setdefault(" · ".join(map(str, kind)), []).append((num_steps, means))
    for column, axes in enumerate(figure.subplots(1, len(FIGURES))):
        for label, points in lines.items():
            points = sorted(points)
            speeds = [means[0] for _, means in points]
            values = [means[1 + column] for _, means in points]
            axes.plot(speeds, values, "o-", label=label)
            for speed, value, (num_steps, _) in zip(speeds, values, points, strict=True):
                axes.annotate(str(num_steps), (speed, value))
        axes.set(xscale="log", xlabel=SPEED, ylabel=FIGURES[column])
        axes.grid(alpha=0.3)
        if lines:
            axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    start(main, __doc__)
