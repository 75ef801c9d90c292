"""synth and synth select."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands import common
from mnist_transformer.options import FLAGSHIP, PLAIN, check_seed
from mnist_transformer.utils.terminal import say, stages

PART = 1_000  # images that are drawn at once, and lost at most if the process is killed


def synth(
    out: Path,
    n: int = 200_000,
    model: common.Model = FLAGSHIP,
    seed: common.Seed = 0,
    how: common.How = PLAIN,
    data: common.Data = None,
    device: common.Device = None,
) -> None:
    """Draw a class-balanced data set and score every image.

    After an interruption the same command resumes. `accelerate launch -m mnist_transformer.cli
    synth` shares the work. `train patch --dataset idx --data OUT` trains on the set.

    Args:
        out: The folder to write to.
        n: How many images, 10 or more.
    """
    if n < 10:  # fewer would not make a data set
        raise ValueError(f"n is {n}, expected 10 or more")
    check_seed(seed, n)
    from mnist_transformer.evaluation import synthetic
    from mnist_transformer.models import checkpoint, loading
    from mnist_transformer.training import runtime
    from mnist_transformer.utils import trees

    weights = loading.find_weights(model)
    crc = trees.read(weights, checkpoint.KIND)[1][trees.CHECKSUM]
    made = f"{n} images by {weights.name} ({crc}), seed {seed}" + f", {how}" * (how != PLAIN)
    synthetic.claim(out, made)
    process = runtime.make_accelerator(out, device)
    is_main, count = process.is_main_process, process.num_processes
    paths = {x: out / "parts" / f"{x:09}.safetensors" for x in range(0, n, PART)}
    with runtime.claim(out) if is_main else nullcontext(), stages() as report:
        if not (out / synthetic.SCORES).exists():
            drawn = synthetic.drawing(loading.load(weights, str(process.device)), data, seed, how)
            for start in list(paths)[process.process_index :: count]:
                if not paths[start].exists():
                    trees.save_state(paths[start], drawn(range(start, min(start + PART, n))))
                if is_main:
                    report("drawing", min(start + count * PART, n), n)
            process.wait_for_everyone()
            if is_main:
                synthetic.save(out, [trees.load_state(path) for path in paths.values()])
    if is_main:
        shutil.rmtree(out / "parts", ignore_errors=True)
        say(f"saved {out}")
    process.end_training()


def select(
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")],
    out: Path,
    best: int | None = None,
    worst: int | None = None,
    random: int | None = None,
    by: str | None = None,
    seed: int = 0,
) -> None:
    """Take the best, the worst or random images of a set that synth drew, balanced by class.

    Args:
        out: The folder to write to.
        best: How many of the highest probability, the fewest nats or the least distance.
        by: probability (the judge's), nats (the model's) or distance (to the training images).
    """
    ways = {"best": best, "worst": worst, "random": random}
    given = [(way, count) for way, count in ways.items() if count is not None]
    if len(given) != 1 or (by is None) != (random is not None):
        raise ValueError("expected --best N --by SCORE, --worst N --by SCORE or --random N")
    check_seed(seed)
    from mnist_transformer.evaluation import synthetic

    columns, (way, count) = synthetic.load(folder), given[0]
    kept, total = synthetic.select(columns, way, count, by, seed), len(columns["label"])
    synthetic.claim(out, f"{way} {count} of {folder.name} by {by or 'chance'}, seed {seed}")
    synthetic.save(out, [{x: y[kept] for x, y in columns.items()}])
    say(f"saved {out}: {count:,} of {total:,} images, balanced by class")
    rest = sorted(set(range(total)) - set(kept.tolist()))
    for score in (score for score in synthetic.BETTER if score in columns and rest):
        means = [float(columns[score][index].mean()) for index in (kept, rest)]
        say("{}: mean {:.4g}, against {:.4g} for the {:,} dropped".format(score, *means, len(rest)))
