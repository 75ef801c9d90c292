"""MNIST with prompts: each image comes with sentences that ask for its digit, or for others.

In a batch an image has rows of tokens, see ``prompting.tokens``. The answer to the first row
shows the image's digit. The other rows are chosen from all prompts, refusals included, and are
only read. The grammar writes the prompts; one in twenty is by a language model.
"""

import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from mnist_transformer.data import mnist
from mnist_transformer.data.dataset import Dataset, Split
from mnist_transformer.prompting import grammar
from mnist_transformer.prompting.prompts import Prompt, compute, is_held_out
from mnist_transformer.prompting.tokens import encode, stack

WRITTEN = Path(__file__).with_name("prompts_smollm2.jsonl")
WRITTEN_EVERY = 20
NUM_TRAIN, NUM_OTHERS = 200_000, 5_000
NUM_READ = 2  # prompts per image
SEEDS = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # of the grammar


def read_prompts(path: Path = WRITTEN) -> list[Prompt]:
    """Prompts by a language model, from a file of JSON lines that tools/write_prompts.py wrote.

    A line that does not hold a prompt with its answer raises ValueError.
    """
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            operands = tuple(row["operands"])
            prompt = Prompt(row["text"], row["answer"], row["operation"], operands, row["model"])
            if prompt.answer is None or prompt.answer != compute(prompt.operation, operands):
                raise ValueError("wrong answer")
            prompt.text.encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            message = f"line {number} of {path} does not hold a prompt with its answer"
            raise ValueError(message) from error
        found.append(prompt)
    return found


def is_for_testing(prompt: Prompt) -> bool:
    """Whether a prompt by a language model is kept for testing: one in five, and held-out sums."""
    return is_held_out(prompt.operands) or zlib.crc32(prompt.text.encode()) % 5 == 0


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts with their answers: ``num`` of the grammar's training split, written at first use.

    With ``corpus`` prompts by a language model take the place of some of them.
    """

    num: int = NUM_TRAIN
    seed: int = 0
    corpus: bool = True

    def written(self) -> list[Prompt]:
        prompts = list(islice(grammar.prompts("train", self.seed), self.num))
        if self.corpus:
            # Spread evenly, so that the first of these prompts are as mixed as all of them.
            others = cycle(prompt for prompt in read_prompts() if not is_for_testing(prompt))
            prompts[::WRITTEN_EVERY] = islice(others, -(-self.num // WRITTEN_EVERY))
        return prompts

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows int16 (N, T), indices of the rows with digit 0, then 1, ..., and their counts."""
        prompts = self.written()
        shown = sorted({(digit, i) for i, prompt in enumerate(prompts) for digit in prompt.digits})
        digit, index = torch.tensor(shown, dtype=torch.int64).view(-1, 2).unbind(1)
        count = digit.bincount(minlength=10)
        if not count.all():
            missing = f"no prompt of {self.num} asks for a {count.argmin()}"
            raise ValueError(f"{missing}, expected more prompts")
        return stack([encode(p.text, p.digits) for p in prompts]).to(torch.int16), index, count

    def draw(self, labels: Tensor, num_read: int) -> Tensor:
        """Rows int64 (B, num_read, 1 + T) on the CPU, drawn with torch's generator."""
        text_NT, index, count = self._table
        chosen = torch.randint(len(text_NT), (len(labels), num_read))
        place = (torch.rand(len(labels), dtype=torch.float64) * count[labels]).long()
        chosen[:, 0] = index[(count.cumsum(0) - count)[labels] + place]
        text_BRT = text_NT[chosen].long()
        longest = int((text_BRT >= 0).sum(-1).max())
        label_BR1 = labels[:, None, None].expand(-1, num_read, 1)
        return torch.cat([label_BR1, text_BRT[..., :longest]], -1)


@dataclass(frozen=True, eq=False)
class PromptedSplit(Split):
    """Images and labels; a batch has rows (B, NUM_READ, 1 + T) of prompts in place of labels."""

    prompts: Prompts

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = super().batch(index)
        return images, self.prompts.draw(labels.cpu(), NUM_READ).to(labels.device)


def with_prompts(dataset: Dataset, prompts: Prompts) -> Dataset:
    """The same images with these prompts to train on, and others in val and test."""

    def change(name: str, split: Split) -> Split:
        others = Prompts(NUM_OTHERS, prompts.seed + SEEDS[name], corpus=False)
        return PromptedSplit(split.images, split.labels, prompts if name == "train" else others)

    return dataset.map(change)


def load(folder: Path | None = None) -> Dataset:
    """MNIST with prompts; errors as in ``mnist.load``."""
    return with_prompts(mnist.load(folder), Prompts())
