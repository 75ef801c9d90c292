"""Sentences answered with pictures: one interface for two systems.

A prompted model reads a sentence and draws the digits itself. An adapter reads the states of a
frozen language model, and a frozen generator draws the digits.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mnist_transformer.models import checkpoint, loading
from mnist_transformer.models.base import GenerativeModel, Model
from mnist_transformer.models.patch_law.prompted import Prompted
from mnist_transformer.models.reader import Reader
from mnist_transformer.options import Sampling
from mnist_transformer.prompting.llm import LLM
from mnist_transformer.prompting.prompts import is_out_of_range
from mnist_transformer.prompting.tokens import READ_AT_ONCE, Digits, encode, stack
from mnist_transformer.utils.devices import to_device

Texts: TypeAlias = Sequence[str]
Answers: TypeAlias = Sequence[Digits]


class Asked(ABC):
    """A system that can be asked for a number, and the model that draws its digits."""

    def __init__(self, drawer: GenerativeModel) -> None:
        self.drawer = drawer

    @abstractmethod
    def read(self, texts: Texts) -> list[Digits]:
        """The digits that each text asks for; () refuses. Raises ValueError as ``encode``."""

    @abstractmethod
    def conditions(self, texts: Texts, answers: Answers) -> Tensor:
        """The drawer's conditions for the digits of all answers, one after another."""

    def answer(self, text: str) -> Digits:
        """The digits to draw for a text: as ``read``, but () where a rule finds it out of range.

        Models misread some of those texts.
        """
        (digits,) = self.read([text])
        return () if is_out_of_range(text) else digits

    def steps(
        self, texts: Texts, answers: Answers, seeds: Iterable[int], how: Sampling | None = None
    ) -> Iterator[Tensor]:
        """Stream uint8 canvases (N, C, H, W) of the digits of all answers, one seed per digit.

        Raises:
            ValueError: as in ``GenerativeModel.steps``.
        """
        return self.drawer.steps(self.conditions(texts, answers), seeds, how)

    def draw(
        self, texts: Texts, answers: Answers, seeds: Iterable[int], how: Sampling | None = None
    ) -> Tensor:
        """The finished canvas of ``steps``."""
        return self.drawer.sample(self.conditions(texts, answers), seeds, how)


class FromScratch(Asked):
    """A prompted model."""

    drawer: Prompted

    def read(self, texts: Texts) -> list[Digits]:
        return self.drawer.read(texts)

    def conditions(self, texts: Texts, answers: Answers) -> Tensor:
        pairs = zip(texts, answers, strict=True)
        return stack([[digit, *encode(text, digits)] for text, digits in pairs for digit in digits])


class ThroughLLM(Asked):
    """A language model, an adapter that reads its states, and a generator."""

    def __init__(self, drawer: GenerativeModel, reader: Reader, llm: LLM) -> None:
        super().__init__(drawer)
        self.reader, self.llm = reader, llm

    def read(self, texts: Texts) -> list[Digits]:
        for text in texts:
            encode(text)  # the same limits
        answers: list[Digits] = []
        for first in range(0, len(texts), READ_AT_ONCE):
            states = self.llm.states(texts[first : first + READ_AT_ONCE])
            padded = pad_sequence(states, batch_first=True, padding_side="left")
            answers += self.reader.read(padded.half())  # as training read them
        return answers

    def conditions(self, texts: Texts, answers: Answers) -> Tensor:
        return torch.tensor([digit for digits in answers for digit in digits], dtype=torch.int64)


def system_of(model: Model) -> Asked:
    """The system that a loaded model is, or is a part of.

    Raises:
        ValueError: the language model or the generator behind it is not installed.
    """
    if isinstance(model, Prompted):
        return FromScratch(model)
    assert isinstance(model, Reader)
    llm = LLM(model.config.llm, model.config.layer, model.device)
    return ThroughLLM(loading.load(model.config.generator, str(model.device)), model, llm)


def reads_prompts(model: Model) -> bool:
    """Whether ``system_of`` takes the model."""
    return isinstance(model, Prompted | Reader)


def load(name_or_path: str | os.PathLike[str], device: str | None = None) -> Asked:
    """A system ready to be asked; arguments and errors as in ``mnist_transformer.load``.

    Raises:
        ValueError: also as in ``system_of``, or the model does not read prompts.
    """
    model = checkpoint.load(loading.find_weights(name_or_path))
    if not reads_prompts(model):
        raise ValueError(
            f"{name_or_path} is a {type(model).__name__.lower()}: it does not read prompts, "
            "expected a model such as mnist-prompt-scratch or mnist-prompt-smollm2"
        )
    return system_of(to_device(model, device))
