"""Sentences answered with pictures, by either of two systems behind one interface.

A prompted model reads and draws itself. An adapter reads what a frozen language model makes of
the sentence, and a frozen generator draws the digits.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mnist_transformer.models import checkpoint, loading
from mnist_transformer.models.base import GenerativeModel, Model
from mnist_transformer.models.prompted import Prompted
from mnist_transformer.models.reader import Reader
from mnist_transformer.options import Sampling
from mnist_transformer.prompting.llm import LLM
from mnist_transformer.prompting.prompts import is_out_of_range
from mnist_transformer.prompting.tokens import READ_AT_ONCE, encode, stack
from mnist_transformer.utils.devices import to_device

Digits = tuple[int, ...]


class Asked(ABC):
    """What can be asked to draw a number.

    Args:
        drawer: the model that draws a digit.
    """

    def __init__(self, drawer: GenerativeModel) -> None:
        self.drawer = drawer

    @abstractmethod
    def read(self, texts: Sequence[str]) -> list[Digits]:
        """The digits that each text asks for; () refuses.

        Raises:
            ValueError: a text that is empty or too long.
        """

    def answer(self, text: str) -> Digits:
        """The digits to draw for a text: as read, but what is plainly out of range is refused.

        A model misreads some of those, and which numbers a text holds can be told by rule.

        Raises:
            ValueError: as in ``read``.
        """
        (digits,) = self.read([text])
        return () if is_out_of_range(text) else digits

    @abstractmethod
    def conditions(
        self, texts: Sequence[str], digits: Sequence[int], answers: Sequence[Digits]
    ) -> Tensor:
        """The drawer's conditions for one digit each of these texts and their answers."""

    def draw(
        self,
        texts: Sequence[str],
        answers: Sequence[Digits],
        seeds: Iterable[int],
        how: Sampling | None = None,
    ) -> Tensor:
        """uint8 (N, C, H, W): the digits of all answers, one after another; a seed a digit."""
        shown = [
            (text, digit, digits)
            for text, digits in zip(texts, answers, strict=True)
            for digit in digits
        ]
        if not shown:
            return torch.empty(0, *self.drawer.image_shape, dtype=torch.uint8)
        return self.drawer.sample(self.conditions(*zip(*shown, strict=True)), seeds, how)


class ByItself(Asked):
    """A prompted model."""

    drawer: Prompted

    def read(self, texts: Sequence[str]) -> list[Digits]:
        return self.drawer.read(texts)

    def conditions(
        self, texts: Sequence[str], digits: Sequence[int], answers: Sequence[Digits]
    ) -> Tensor:
        said = (encode(text, answer) for text, answer in zip(texts, answers, strict=True))
        return stack([[digit, *row] for digit, row in zip(digits, said, strict=True)])


class ThroughLLM(Asked):
    """A language model, an adapter that reads its states, and a generator.

    Args:
        llm: the language model; all that is asked of it is ``states``.
    """

    def __init__(self, drawer: GenerativeModel, reader: Reader, llm: LLM) -> None:
        super().__init__(drawer)
        self.reader, self.llm = reader, llm

    def read(self, texts: Sequence[str]) -> list[Digits]:
        for text in texts:
            encode(text)  # the same limits
        answers: list[Digits] = []
        for first in range(0, len(texts), READ_AT_ONCE):
            states = self.llm.states(texts[first : first + READ_AT_ONCE])
            # As in training, where they were kept in float16.
            padded = pad_sequence(states, batch_first=True, padding_side="left").half()
            answers += self.reader.read(padded)
        return answers

    def conditions(
        self, texts: Sequence[str], digits: Sequence[int], answers: Sequence[Digits]
    ) -> Tensor:
        return torch.tensor(digits)


def reads_prompts(model: Model) -> bool:
    """Whether ``system_of`` takes the model."""
    return isinstance(model, Prompted | Reader)


def load(name_or_path: str | os.PathLike[str], device: str | None = None) -> Asked:
    """A system ready to be asked.

    Args:
        name_or_path, device: as in ``mnist_transformer.load``; of a prompted model or an adapter.

    Raises:
        ValueError: as there; or the model does not read prompts, or the extra that its language
            model comes with is not installed.
    """
    model = checkpoint.load(loading.find_weights(name_or_path))
    if not reads_prompts(model):
        raise ValueError(
            f"{name_or_path} is a {type(model).__name__.lower()}: it does not read prompts, "
            "expected a model such as mnist-prompt-scratch or mnist-prompt-smollm2"
        )
    return system_of(to_device(model, device))


def system_of(model: Model) -> Asked:
    """The system that a loaded model is, or is part of; errors as in ``load``."""
    if isinstance(model, Prompted):
        return ByItself(model)
    assert isinstance(model, Reader)
    llm = LLM(model.config.llm, model.config.layer, model.device)
    return ThroughLLM(loading.load(model.config.generator, str(model.device)), model, llm)
