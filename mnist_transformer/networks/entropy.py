"""Entropy coding: drawing with symbols from a file instead of random ones.

A model computes the probabilities of a symbol before it draws it. An encoder is given the symbol
and spends -log2 p bits on it; a decoder recovers it from the same probabilities. Encoder and
decoder must agree on them to the last bit, so the two take the same steps. The range coder, the
library ``constriction`` (arXiv 2201.01741), turns them into nonzero integer frequencies.

Shapes: N symbols that are coded at once, V values of one symbol.
"""

import numpy as np
import torch
from torch import Tensor


class Coder:
    """Writes symbols, or reads those of a code. Raises ValueError where constriction is missing."""

    def __init__(self, code: bytes | None = None) -> None:
        try:
            from constriction import stream
        except ImportError as error:
            needs = "pip install 'mnist-transformer[compress]'"
            raise ValueError(f"coding images needs the package constriction: {needs}") from error
        self._family = stream.model.Categorical(perfect=False)
        self._writer, self._reader = stream.queue.RangeEncoder(), None
        if code is not None:
            words = np.frombuffer(code + bytes(-len(code) % 4), ">u4")
            self._reader = stream.queue.RangeDecoder(words.astype(np.uint32))

    def code(self, logits_NV: Tensor, symbol_N: Tensor) -> Tensor:
        """Code the next symbols int64 (N,): returns those given, or when reading, those decoded."""
        chances = logits_NV.float().softmax(-1).numpy()
        if self._reader is None:
            self._writer.encode(symbol_N.int().contiguous().numpy(), self._family, chances)
            return symbol_N
        try:
            return torch.from_numpy(self._reader.decode(self._family, chances)).long()
        except AssertionError:  # no writer makes such a code, so a checksum will fail
            return torch.zeros_like(symbol_N)

    def finish(self) -> bytes:
        """The shortest code of everything written; zeros at its end are implied."""
        words, (num_words, (low, size)) = self._writer.get_compressed(), self._writer.pos()
        padded = np.pad(words, (0, num_words + 2 - len(words))).astype(">u4").tobytes()
        # Any number from first to last decodes to the same symbols: take the one with most zeros.
        number = int.from_bytes(padded, "big")
        first = number - (number - low) % 2**64
        last = first + size - 1
        num_zeros = (first ^ last).bit_length() - 1
        return (last >> num_zeros << num_zeros).to_bytes(len(padded), "big").rstrip(b"\0")
