"""prompts show and prompts encode."""

from itertools import islice
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_transformer.commands.common import Device
from mnist_transformer.utils.terminal import say, stages


def show(
    split: Annotated[Positional[str], arg(metavar="SPLIT")] = "train", n: int = 10, seed: int = 0
) -> None:
    """Show prompts of the grammar, each after the number it asks for; "-" marks one to refuse.

    Args:
        split: train, held_out_templates, held_out_sums, typos or out_of_scope.
        n: How many.
        seed: The same seed writes the same prompts.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    from mnist_transformer.prompting import grammar

    for prompt in islice(grammar.prompts(split, seed), n):
        say(f"{'-' if prompt.answer is None else prompt.answer:>2}  {prompt.text}")


def encode(n: int = 60_000, out: Path | None = None, seed: int = 0, device: Device = None) -> None:
    """Save SmolLM2's states of training prompts, for `train mnist-prompt-smollm2` to read.

    Args:
        n: How many prompts; one takes about 10 kB.
        out: The folder to write to; otherwise runs/smollm2-states, where training looks for it.
        seed: The same seed takes the same prompts.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected {least} or more")
    from mnist_transformer.data import states
    from mnist_transformer.prompting.llm import LAYER, LLM, MODEL
    from mnist_transformer.utils.devices import find_device

    folder = out or states.FOLDER
    llm = LLM(MODEL, LAYER, find_device(device))
    with stages() as report:
        states.encode_prompts(folder, llm.states, num_prompts=n, seed=seed, report=report)
    say(f"saved {folder}")
