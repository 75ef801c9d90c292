"""Hard use: everything that docs/reliability.md claims, tried again.

    python -m tools.hard_use                    # all of it, about 20 minutes on two cores
    python -m tools.hard_use --parts flips pictures --no-record

Each line of a part's table becomes a row of the ledger; ``python -m tools.report`` renders them.
"""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from mnist_transformer.evaluation import ledger
from mnist_transformer.utils.checks import check_choice
from mnist_transformer.utils.terminal import complain, exit_code, say
from tools import trials
from tools.hard import Lines
from tools.hard.flips import flips
from tools.hard.kills import kills
from tools.hard.pictures import many_pictures
from tools.hard.seeds import seeds
from tools.hard.terminals import terminals

PARTS = ("kills", "flips", "terminals", "pictures", "visitors", "seeds")


def main(
    parts: tuple[str, ...] = PARTS,
    num_kills: int = 50,
    num_flips: int = 200,
    terminal_share: float = 0.5,
    num_pictures: int = 200,
    num_visitors: int = 20,
    visit_seconds: float = 120.0,
    models: tuple[str, ...] = (),
    largest_batch: int = 257,
    seed: int = 0,
    record: bool = True,
) -> None:
    """Kill runs, flip bits, change terminals, damage pictures, crowd the demo, vary the machine.

    Args:
        parts: Any of kills, flips, terminals, pictures, visitors, seeds.
        num_kills: Runs to kill.
        num_flips: Bits to flip in each part of each kind of file.
        terminal_share: The share of all combinations of terminal, encoding and verb to try.
        num_pictures: Pictures to damage.
        num_visitors: Visitors of the demo at a time; needs the extra [web].
        visit_seconds: How long they stay.
        models: Models whose seeds are drawn in other batches, threads and kernels; otherwise
            all shipped ones that draw.
        largest_batch: The largest batch in which the same seeds are drawn.
        seed: Decides what is killed, flipped and damaged.
        record: Append the counts to results/ledger.jsonl.
    """
    if not 0 < terminal_share <= 1:
        raise ValueError(f"terminal_share is {terminal_share}, expected a number in (0, 1]")
    for part in parts:
        check_choice("part", part, PARTS)
    command = ledger.clean_command(["python", "-m", "tools.hard_use", *sys.argv[1:]])
    for part in parts:
        complain(f"{part} ...")
        with TemporaryDirectory(prefix="hard-use-") as name:
            folder = Path(name)
            lines = {
                "kills": partial(kills, num_kills, folder, seed),
                "flips": partial(flips, num_flips, folder, seed),
                "terminals": partial(terminals, terminal_share, folder),
                "pictures": partial(many_pictures, num_pictures, folder, seed),
                "visitors": partial(_visitors, num_visitors, visit_seconds, folder, seed),
                "seeds": partial(seeds, models, largest_batch, folder),
            }[part]
            for settings, figures in lines():
                values = (f"{key} {value}" for key, value in figures.items() if value is not None)
                say(f"{part}, {', '.join(map(str, settings.values()))}: {', '.join(values)}")
                if record:
                    row = trials.make_row(f"hard-use-{part}", settings, figures, command=command)
                    ledger.append(row)


def _visitors(number: int, seconds: float, folder: Path, seed: int) -> Lines:
    from tools.hard.visitors import visitors

    return visitors(number, seconds, folder, seed)


if __name__ == "__main__":
    sys.exit(exit_code("tools.hard_use", lambda: tyro.cli(main, prog="python -m tools.hard_use")))
