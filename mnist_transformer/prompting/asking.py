"""Sentences answered with pictures: one interface for two systems.

A prompted model reads a sentence and draws the digits itself. An adapter reads the states of a
frozen language model, and a frozen generator draws the digits.
"""

import os
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mnist_transformer.models import loading
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.models.prompted import Prompted
from mnist_transformer.models.reader import Reader
from mnist_transformer.prompting.llm import LLM, weights
from mnist_transformer.prompting.prompts import HEXADECIMAL, is_out_of_range, plain
from mnist_transformer.prompting.tokens import READ_AT_ONCE, Digits, encode, stack

ReadsPrompts: TypeAlias = Prompted | Reader


class Asked:
    """A system that can be asked for a number: a prompted model, or an adapter.

    Its ``drawer`` draws the digits. ValueError if a package that an adapter needs is missing.
    """

    def __init__(self, reader: ReadsPrompts) -> None:
        self.reader, self._loading = reader, threading.Lock()
        if isinstance(reader, Prompted):
            self.drawer: GenerativeModel = reader
        else:
            weights(reader.config.llm)
            self.drawer = loading.load(reader.config.generator, str(reader.device))

    @cached_property
    def llm(self) -> LLM:
        """The adapter's language model, loaded when it first reads."""
        assert isinstance(self.reader, Reader)
        return LLM(self.reader.config.llm, self.reader.config.layer, self.reader.device)

    @property
    def is_loaded(self) -> bool:
        """Whether it reads without loading a language model first."""
        return isinstance(self.reader, Prompted) or "llm" in vars(self)

    def read(self, texts: Sequence[str]) -> list[Digits]:
        """The digits that each text asks for; () refuses. Raises ValueError as ``encode``."""
        if isinstance(self.reader, Prompted):
            return self.reader.read(texts)
        for text in texts:
            encode(text)  # checks the same limits
        answers: list[Digits] = []
        for first in range(0, len(texts), READ_AT_ONCE):
            with self._loading:  # once, though two visitors of the demo may ask
                llm = self.llm
            states = llm.states(texts[first : first + READ_AT_ONCE])
            padded = pad_sequence(states, batch_first=True, padding_side="left")
            answers += self.reader.read(padded.half())  # as training read them
        return answers

    def answer(self, text: str) -> Digits:
        """The digits to draw for a text: as ``read``, but () where a rule refuses it.

        Models misread some texts that the rules refuse. A text not ``plain`` raises ValueError.
        """
        text = plain(text)
        (digits,) = self.read([text])
        return () if is_out_of_range(text) or HEXADECIMAL.search(text) else digits

    def conditions(self, texts: Sequence[str], answers: Sequence[Digits]) -> Tensor:
        """The drawer's conditions for the digits of all answers, one after another."""
        pairs = [(x, digits, d) for x, digits in zip(texts, answers, strict=True) for d in digits]
        if isinstance(self.reader, Prompted):
            return stack([[digit, *encode(plain(text), digits)] for text, digits, digit in pairs])
        return torch.tensor([digit for _, _, digit in pairs], dtype=torch.int64)


def load(name_or_path: str | os.PathLike[str], device: str | None = None) -> Asked:
    """A system ready to be asked, as ``mnist_transformer.load`` finds it; ValueError likewise."""
    model = loading.load_model(name_or_path, device)
    if not isinstance(model, ReadsPrompts):
        wrong = f"{name_or_path} is a {type(model).__name__.lower()}: it does not read prompts"
        expected = "expected a model such as mnist-prompt-scratch or mnist-prompt-smollm2"
        raise ValueError(f"{wrong}, {expected}")
    return Asked(model)
