"""Entropy coding: a drawing whose symbols a file holds, where others draw them at random.

A model computes the probabilities of a symbol before it draws it. An encoder is told the symbol
and spends -log2 p bits on it; the decoder reads it, given the same probabilities (range coding,
Martin 1979, by the library ``constriction``, arXiv 2201.01741, which makes integer frequencies of
them, none zero). They must be the same to the last bit: both sides take the same steps.

Shapes: N symbols that are coded at once, V values of one symbol.
"""

from types import ModuleType
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Encoder:
    """Writes symbols."""

    def __init__(self) -> None:
        library = load_constriction()
        self._stream = library.stream.queue.RangeEncoder()
        self._family = library.stream.model.Categorical(perfect=False)

    def code(self, logits_NV: Tensor, symbol_N: Tensor) -> Tensor:
        """The symbols int64 (N,), once they are written."""
        symbols = symbol_N.to(torch.int32).contiguous().numpy()
        self._stream.encode(symbols, self._family, _chances(logits_NV))
        return symbol_N

    def finish(self) -> bytes:
        """All that was written."""
        return self._stream.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


class Decoder:
    """Reads the symbols that an encoder wrote."""

    def __init__(self, code: bytes) -> None:
        library = load_constriction()
        words = np.frombuffer(code + bytes(-len(code) % 4), ">u4").astype(np.uint32)
        self._stream = library.stream.queue.RangeDecoder(words)
        self._family = library.stream.model.Categorical(perfect=False)

    def code(self, logits_NV: Tensor, symbol_N: Tensor) -> Tensor:
        """The next symbols int64 (N,); those given are an encoder's, and are not looked at.

        Whoever reads must have a checksum: other probabilities give other symbols.
        """
        try:
            symbols = self._stream.decode(self._family, _chances(logits_NV))
        except AssertionError:  # no encoder writes this, given these probabilities
            return torch.zeros_like(symbol_N)
        return torch.from_numpy(symbols).long()


Coder: TypeAlias = Encoder | Decoder


def load_constriction() -> ModuleType:
    """The library. Raises ValueError where it is not installed."""
    try:
        import constriction
    except ImportError as error:
        needs = "pip install 'mnist-transformer[compress]'"
        raise ValueError(f"to code images takes the package constriction: {needs}") from error
    return constriction


def _chances(logits_NV: Tensor) -> NDArray[np.float32]:
    return logits_NV.float().softmax(-1).numpy()
