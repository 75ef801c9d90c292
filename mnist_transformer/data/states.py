"""States of a frozen language model for prompts, with their answers: written once, read often.

A file holds the float16 states of all tokens of all prompts, packed, and where each prompt ends.
``mnist-transformer prompts encode`` writes it, and an adapter (models/reader.py) trains on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mnist_transformer.data import mnist
from mnist_transformer.data.dataset import Dataset, Split
from mnist_transformer.data.prompted import SEEDS, Prompts
from mnist_transformer.prompting.llm import LAYER, MODEL
from mnist_transformer.prompting.tokens import encode, stack, targets
from mnist_transformer.utils import trees
from mnist_transformer.utils.files import check_place

FOLDER = Path("runs") / "smollm2-states"
WRITE = "write them with `mnist-transformer prompts encode`"
MAX_DIGITS = 2
BATCH_SIZE = 64  # prompts that are encoded at once
NUM_VAL = 2_000
SOURCE = f"{MODEL}, layer {LAYER}, answers with the ones first"


@dataclass(frozen=True, eq=False)
class StatesSplit(Split):
    """States float16 (U, F) of all tokens in place of images, answers int64 (N, K) of labels."""

    bounds: Tensor  # int64 (N + 1,): prompt i has the states bounds[i] up to bounds[i + 1]

    def part(self, start: int, stop: int) -> Split:
        bounds = self.bounds[start : stop + 1]
        images, labels = self.images[bounds[0] : bounds[-1]], self.labels[start:stop]
        return StatesSplit(images, labels, bounds - bounds[0])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T, F), with zeros before those of a shorter prompt, and answers (B, K)."""
        states = [self.images[self.bounds[i] : self.bounds[i + 1]] for i in index.tolist()]
        return pad_sequence(states, batch_first=True, padding_side="left"), self.labels[index]


def encode_prompts(
    folder: Path,
    encoder: Callable[[Sequence[str]], list[Tensor]],
    *,
    num_prompts: int,
    seed: int = 0,
    report: Callable[[str, int, int | None], None],
) -> None:
    """Write train.safetensors and val.safetensors into the folder; raises OSError if it cannot.

    ``encoder`` makes states (T, F) of each text: the language model of llm.py up to its LAYER.
    """
    check_place(folder / "train.safetensors")
    validation = Prompts(min(num_prompts, NUM_VAL), seed + SEEDS["val"], corpus=False)
    for name, source in {"train": Prompts(num_prompts, seed), "val": validation}.items():
        prompts = source.written()
        states = [torch.empty(0)] * len(prompts)
        # By length, so that little of a batch is padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].text))
        for first in range(0, len(order), BATCH_SIZE):
            batch = order[first : first + BATCH_SIZE]
            for index, found in zip(batch, encoder([prompts[i].text for i in batch]), strict=True):
                states[index] = found.half()
            report(f"{name} prompts", first + len(batch), len(order))
        answered = stack([encode("?", prompt.digits) for prompt in prompts])
        tree = {
            "states": torch.cat(states),
            "ends": torch.tensor([len(x) for x in states]).cumsum(0),
            "answers": targets(answered, 10, MAX_DIGITS),
            "source": SOURCE,
        }
        trees.save_state(folder / f"{name}.safetensors", tree)


def load(folder: Path | None = None) -> Dataset:
    """States for training and validation, which also stands for a test split.

    Missing or damaged files, and states of another model or layer, raise ValueError.
    """
    splits = []
    for name in ("train", "val"):
        path = (folder or FOLDER) / f"{name}.safetensors"
        if not path.is_file():
            raise ValueError(f"{path} does not exist, expected the states of prompts: {WRITE}")
        tree = trees.load_state(path)
        if (source := tree.get("source")) != SOURCE:
            raise ValueError(f"{path} holds states of {source}, expected {SOURCE}: {WRITE}")
        bounds = F.pad(tree["ends"], (1, 0))
        splits.append(StatesSplit(tree["states"], tree["answers"], bounds))
    return Dataset(splits[0], splits[1], splits[1], mnist.SPEC)  # answers are its classes
