"""Small generative image models: draw with them, train them, measure them."""

import sys
from collections.abc import Callable, Sequence

import tyro

import mnist_transformer
from mnist_transformer.commands.ask import ask
from mnist_transformer.commands.common import PROG, REGISTRY
from mnist_transformer.commands.demo import demo
from mnist_transformer.commands.draw import draw
from mnist_transformer.commands.evaluate import evaluate
from mnist_transformer.commands.inpaint import inpaint
from mnist_transformer.commands.list import list_models
from mnist_transformer.commands.prompts import prompts
from mnist_transformer.commands.train import train
from mnist_transformer.utils.terminal import exit_code, say

VERBS: dict[str, Callable[..., None]] = {
    "draw": draw,
    "inpaint": inpaint,
    "ask": ask,
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "list": list_models,
    "prompts": prompts,
}


def parse_and_run(arguments: Sequence[str], verbs: dict[str, Callable[..., None]] = VERBS) -> None:
    """Call the verb that the arguments name; wrong ones raise SystemExit(2) with a message."""
    with REGISTRY:
        tyro.extras.subcommand_cli_from_dict(verbs, prog=PROG, description=__doc__, args=arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        say(f"{PROG} {mnist_transformer.__version__}")
        return 0
    return exit_code(PROG, lambda: parse_and_run(arguments))


if __name__ == "__main__":
    sys.exit(main())
