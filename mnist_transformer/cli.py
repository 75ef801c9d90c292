"""Small generative image models: draw with them, train them, measure them."""

import sys
from collections.abc import Callable, Sequence

import tyro

import mnist_transformer
from mnist_transformer.commands.ask import ask
from mnist_transformer.commands.common import PROG, REGISTRY
from mnist_transformer.commands.compress import compress, decompress
from mnist_transformer.commands.demo import demo
from mnist_transformer.commands.draw import draw
from mnist_transformer.commands.evaluate import evaluate
from mnist_transformer.commands.export import export
from mnist_transformer.commands.hub import pull, push
from mnist_transformer.commands.inpaint import inpaint
from mnist_transformer.commands.list import list_models
from mnist_transformer.commands.prompts import encode, show
from mnist_transformer.commands.scans import build, verify
from mnist_transformer.commands.synth import select, synth
from mnist_transformer.commands.train import train
from mnist_transformer.utils.terminal import exit_code, say

VERBS: dict[str, Callable[..., None]] = {
    "draw": draw,
    "inpaint": inpaint,
    "ask": ask,
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "export": export,
    "list": list_models,
    "prompts show": show,
    "prompts encode": encode,
    "scans build": build,
    "scans verify": verify,
    "compress": compress,
    "decompress": decompress,
    "synth": synth,
    "synth select": select,
    "hub push": push,
    "hub pull": pull,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; wrong arguments raise SystemExit(2)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if " ".join(arguments[:2]) in VERBS:  # a verb of two words
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    if list(arguments) == ["--version"]:
        return exit_code(PROG, lambda: say(f"{PROG} {mnist_transformer.__version__}"))
    parse = tyro.extras.subcommand_cli_from_dict
    with REGISTRY:
        return exit_code(PROG, lambda: parse(VERBS, prog=PROG, description=__doc__, args=arguments))


if __name__ == "__main__":
    sys.exit(main())
