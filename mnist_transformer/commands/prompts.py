"""prompts show, prompts write and prompts encode."""

import itertools
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from mnist_transformer.commands.common import Device, typed_command
from mnist_transformer.utils.terminal import say, stages


def show(
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
    from mnist_transformer.prompting import grammar as prompt_grammar

    for prompt in itertools.islice(prompt_grammar.prompts(split, seed), n):
        say(f"{'-' if prompt.answer is None else prompt.answer:>2}  {prompt.text}")


def write(
    n: int,
    out: Annotated[Path, arg(metavar="FILE.jsonl")] = Path("prompts.jsonl"),
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
        from tools.prompt_writer import write_corpus
    except ModuleNotFoundError as missing:
        raise ValueError(
            f"prompts write needs {missing.name}: pip install 'mnist-transformer[prompts]'"
        ) from None

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
            command=typed_command(),
            report=report,
        )
    say(f"{out}: {run}")


def encode(
    n: int = 60_000,
    out: Path | None = None,
    seed: int = 0,
    device: Device = None,
) -> None:
    """Keep SmolLM2's states of training prompts, for `train mnist-prompt-smollm2` to read.

    Args:
        n: How many prompts; a prompt takes some 10 kB.
        out: The folder to write to; otherwise runs/smollm2-states, where training looks for it.
        seed: The same seed takes the same prompts.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected 1 or more")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    from mnist_transformer.data import states
    from mnist_transformer.prompting.llm import LAYER, LLM, MODEL
    from mnist_transformer.utils.devices import find_device

    folder, place = out or states.FOLDER, find_device(device)
    llm = LLM(MODEL, LAYER, place)
    with stages() as report:
        states.encode_prompts(
            folder,
            llm.states,
            num_prompts=n,
            seed=seed,
            report=report,
        )
    say(f"saved {folder}")


def prompts(
    action: Annotated[
        Annotated[None, subcommand("show", constructor=show)]
        | Annotated[None, subcommand("write", constructor=write)]
        | Annotated[None, subcommand("encode", constructor=encode)],
        arg(name=""),
    ],
) -> None:
    """Prompts with their answer: `show` the grammar's, have a language model `write` more.

    Or have one `encode` them for an adapter.
    """
