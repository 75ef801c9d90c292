"""Images with prompts that ask for them: what a model that reads prompts is trained on.

An image has its label as ever; in a batch it comes with rows of prompt_tokens.py. The first row
is a prompt whose answer shows the image's digit, drawn at random among those that do; the others
are drawn among all, refusals included, to be read only.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mnist_transformer.data import mnist
from mnist_transformer.data.dataset import Dataset, Split
from mnist_transformer.prompting import corpus as prompt_corpus
from mnist_transformer.prompting import grammar as prompt_grammar
from mnist_transformer.prompting.prompts import Prompt
from mnist_transformer.prompting.tokens import encode, stack

SPEC = mnist.SPEC  # its images
CORPUS = Path(__file__).with_name("prompts_smollm2.jsonl")
CORPUS_SHARE = 20  # one prompt in so many is one that a language model wrote, again and again
NUM_TRAIN, NUM_OTHERS = 200_000, 5_000
SEEDS = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # of the grammar


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts with their answers, written when they are first needed.

    Args:
        num: how many, of the grammar's training split, from ``seed``.
        corpus: whether those that a language model wrote for training are among them.
    """

    num: int = NUM_TRAIN
    seed: int = 0
    corpus: bool = True

    def written(self) -> list[Prompt]:
        grammar = list(islice(prompt_grammar.prompts("train", self.seed), self.num))
        written = written_prompts() if self.corpus else []
        corpus = [p for p in written if not prompt_corpus.is_for_testing(p)]
        if corpus:
            # Spread evenly, so that the first of these prompts are as mixed as all of them.
            for turn, place in enumerate(range(0, self.num, CORPUS_SHARE)):
                grammar[place] = corpus[turn % len(corpus)]
        return grammar

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows int16 (N, T); which of them show each digit, one digit after another, and where."""
        prompts = self.written()
        showing: list[list[int]] = [[] for _ in range(10)]
        for index, prompt in enumerate(prompts):
            for digit in set(prompt.digits):
                showing[digit].append(index)
        missing = [digit for digit, found in enumerate(showing) if not found]
        if missing:
            raise ValueError(f"no prompt of {self.num} asks for a {missing[0]}, expected more")
        text_NT = stack([encode(p.text, p.digits) for p in prompts]).to(torch.int16)
        count = torch.tensor([len(found) for found in showing])
        order = torch.tensor([index for found in showing for index in found])
        return text_NT, order, count.cumsum(0) - count, count

    def draw(self, labels: Tensor, num_read: int) -> Tensor:
        """Rows int64 (B, num_read, 1 + T) on the CPU, drawn with torch's generator."""
        text_NT, order, start, count = self._table
        chosen = torch.randint(len(text_NT), (len(labels), num_read))
        place = (torch.rand(len(labels), dtype=torch.float64) * count[labels]).long()
        chosen[:, 0] = order[start[labels] + place]
        text_BRT = text_NT[chosen].long()
        longest = int((text_BRT >= 0).sum(-1).max())
        label_BR1 = labels[:, None, None].expand(-1, num_read, 1)
        return torch.cat([label_BR1, text_BRT[..., :longest]], -1)


@dataclass(frozen=True, eq=False)
class PromptedSplit(Split):
    """Images, labels, and in a batch prompts, ``num_read`` an image."""

    prompts: Prompts
    num_read: int = 2

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = super().batch(index)
        return images, self.prompts.draw(labels.cpu(), self.num_read).to(labels.device)


def written_prompts() -> list[Prompt]:
    """The shipped prompts of a language model; none where the package has no such file."""
    return prompt_corpus.read_corpus(CORPUS) if CORPUS.is_file() else []


def with_prompts(dataset: Dataset, prompts: Prompts | None = None, num_read: int = 2) -> Dataset:
    """The same images, to be trained on with prompts; those of val and test are others."""
    prompts = prompts or Prompts()
    others = {
        name: replace(prompts, num=NUM_OTHERS, seed=prompts.seed + SEEDS[name], corpus=False)
        for name in ("val", "test")
    }
    return dataset.map(
        lambda name, split: PromptedSplit(
            split.images, split.labels, others.get(name, prompts), num_read
        )
    )


def load(folder: Path | None = None) -> Dataset:
    """MNIST with prompts; errors as in ``mnist.load``."""
    return with_prompts(mnist.load(folder))
