"""What a frozen language model makes of prompts, and their answers: written once, read often.

A file holds the states of all tokens of all prompts in a row, float16, and where each prompt
begins; an adapter (models/reader.py) is trained on them, so that the language model need not run
again. ``mnist-transformer prompts encode`` writes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mnist_transformer.data import mnist
from mnist_transformer.data.dataset import Dataset, Split
from mnist_transformer.data.prompted import SEEDS, Prompts
from mnist_transformer.prompting.llm import LAYER, MODEL
from mnist_transformer.prompting.tokens import encode, stack, targets
from mnist_transformer.utils import trees

SPEC = mnist.SPEC  # answers are its classes
FOLDER = Path("runs") / "smollm2-states"
COMMAND = "mnist-transformer prompts encode"
MAX_DIGITS = 2
NUM_PROMPTS, NUM_VAL = 60_000, 2_000
SOURCE = f"{MODEL}, layer {LAYER}, answers with the ones first"

Encoder = Callable[[Sequence[str]], list[Tensor]]  # texts to states (T, F) each


@dataclass(frozen=True, eq=False)
class StatesSplit(Split):
    """States float16 (U, F) of the tokens of all prompts, and answers int64 (N, K).

    Args:
        ends: int64 (N,), where each prompt's states end.
    """

    ends: Tensor

    def part(self, start: int, stop: int) -> Split:
        stop = min(stop, len(self))
        first = int(self.ends[start - 1]) if start else 0
        last = int(self.ends[stop - 1]) if stop > start else first
        return replace(
            self,
            images=self.images[first:last],
            labels=self.labels[start:stop],
            ends=self.ends[start:stop] - first,
        )

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T, F), with zeros before those of a shorter prompt, and answers (B, K)."""
        at_B = index.cpu()
        first_B = torch.where(at_B > 0, self.ends[at_B - 1], 0)
        spans = zip(first_B.tolist(), self.ends[at_B].tolist(), strict=True)
        states = [self.images[first:last] for first, last in spans]
        return pad_sequence(states, batch_first=True, padding_side="left"), self.labels[index]


def encode_prompts(
    folder: Path,
    encoder: Encoder,
    *,
    num_prompts: int = NUM_PROMPTS,
    seed: int = 0,
    batch_size: int = 64,
    report: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> None:
    """Write train.safetensors and val.safetensors into the folder.

    Args:
        encoder: the language model up to the layer that llm.py names.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": Prompts(num_prompts, seed),
        "val": Prompts(min(num_prompts, NUM_VAL), seed + SEEDS["val"], corpus=False),
    }
    for name, source in parts.items():
        prompts = source.written()
        texts = [prompt.text for prompt in prompts]
        states: list[Tensor] = [torch.empty(0)] * len(texts)
        # By length, so that little of a batch is padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            for index, found in zip(batch, encoder([texts[i] for i in batch]), strict=True):
                states[index] = found.half()
            report(f"{name} prompts", first + len(batch), len(order))
        tree = {
            "states": torch.cat(states),
            "ends": torch.tensor([len(x) for x in states]).cumsum(0),
            "answers": answers([p.digits for p in prompts]),
            "source": SOURCE,
        }
        trees.save_state(folder / f"{name}.safetensors", tree)


def answers(digits: Sequence[Sequence[int]]) -> Tensor:
    """int64 (N, K): the symbols that a reader has to say, see ``prompt_tokens.targets``."""
    return targets(stack([encode("?", found) for found in digits]), 10, MAX_DIGITS)


def load(folder: Path | None = None) -> Dataset:
    """States of prompts for training and validation, which also stands for a test split.

    Args:
        folder: where ``prompts encode`` wrote them; runs/smollm2-states by default.

    Raises:
        ValueError: they are not there, damaged, or of another model or layer.
    """
    folder = folder or FOLDER
    splits = []
    for name in ("train", "val"):
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            raise ValueError(
                f"there is no {path}, expected the states of prompts: write them with `{COMMAND}`"
            )
        tree = trees.load_state(path)
        if tree.get("source") != SOURCE:
            raise ValueError(
                f"{path} holds states of {tree.get('source')}, expected {SOURCE}: write them anew "
                f"with `{COMMAND}`"
            )
        splits.append(StatesSplit(tree["states"], tree["answers"], tree["ends"]))
    return Dataset(splits[0], splits[1], splits[1], SPEC)
