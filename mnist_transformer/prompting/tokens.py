"""Prompts and answers as tokens, and how an answer is read.

A prompt is its bytes in UTF-8, then ASK, then the digits of its answer. A refusal has no digits.
The ones come before the tens, as in written arithmetic: the tens follow from the ones and the
carry (Lee et al., "Teaching arithmetic to small transformers", arXiv 2307.03381). The condition
of a model that draws from prompts is a row

    class of the image | bytes, ASK, digits | PAD ...

A model predicts an answer symbol by symbol: its state at ASK predicts the ones, its state at a
digit the next digit to the left. END follows the last digit.

Shapes: Q prompts, T tokens, K symbols of an answer at most, V digits and END.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.prompting.prompts import MAX_BYTES

ASK = 256  # follows the bytes; digit d is ASK + 1 + d
PAD = -1
IGNORED = -100  # cross_entropy's: no symbol is predicted here
READ_AT_ONCE = 250  # prompts

Digits: TypeAlias = tuple[int, ...]  # as they are written, most significant first; () refuses


def encode(text: str, digits: Sequence[int] = ()) -> list[int]:
    """Tokens of a prompt and the digits of its answer; ValueError: it is empty or too long."""
    # A terminal may send half of a surrogate pair, which UTF-8 cannot hold.
    content = text.encode(errors="replace")
    if not text.strip():
        raise ValueError('the prompt is empty, expected a sentence such as "Draw a 7"')
    if len(content) > MAX_BYTES:
        raise ValueError(f"the prompt has {len(content)} bytes, expected at most {MAX_BYTES}")
    return [*content, ASK, *(ASK + 1 + digit for digit in reversed(digits))]


def stack(rows: Sequence[Sequence[int]]) -> Tensor:
    """int64 (N, T): rows of different lengths, padded."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], dtype=torch.int64)


def num_bytes(text_QT: Tensor) -> Tensor:
    return ((text_QT >= 0) & (text_QT < ASK)).sum(1)


def targets(text_QT: Tensor, end: int, num_symbols: int) -> Tensor:
    """int64 (Q, K): the symbols that answer each prompt, then END, then IGNORED."""
    place_QK = num_bytes(text_QT)[:, None] + 1 + torch.arange(num_symbols, device=text_QT.device)
    digit_QT = F.pad(text_QT - (ASK + 1), (0, num_symbols + 1), value=PAD)
    digit_QK = digit_QT.gather(1, place_QK)
    ended_QK = (digit_QK < 0).cumsum(1)
    target_QK = digit_QK.masked_fill(ended_QK == 1, end).masked_fill(ended_QK > 1, IGNORED)
    return target_QK.masked_fill(~(text_QT == ASK).any(1, keepdim=True), IGNORED)


def answer_nats(logits_QKV: Tensor, target_QK: Tensor) -> Tensor:
    """Exact -log p(answer | prompt), float32 (Q,)."""
    logits_QVK = logits_QKV.float().transpose(1, 2)
    return F.cross_entropy(logits_QVK, target_QK, reduction="none", ignore_index=IGNORED).sum(1)


def answers_right(logits_QKV: Tensor, target_QK: Tensor) -> dict[str, float]:
    """A figure: the share of prompts whose likeliest answer, symbol by symbol, is the right one."""
    target_QK = target_QK.to(logits_QKV.device)
    right_QK = (logits_QKV.argmax(-1) == target_QK) | (target_QK == IGNORED)
    return {"answers_right": right_QK.all(1).double().mean().item()}


def read_greedily(
    logits: Callable[[Any, list[Digits]], Tensor],
    prompts: Sequence[str] | Tensor,
    num_symbols: int,
) -> list[Digits]:
    """The likeliest answer of every prompt, symbol by symbol.

    ``logits`` gives those (Q, K, V) of a batch of prompts and the digits of their answers so far.
    """
    read: list[Digits] = []
    for first in range(0, len(prompts), READ_AT_ONCE):
        part = prompts[first : first + READ_AT_ONCE]
        answers: list[Digits] = [()] * len(part)
        for k in range(num_symbols):
            found_QV = logits(part, answers)[:, k]
            end = found_QV.shape[1] - 1
            answers = [
                (symbol, *digits) if len(digits) == k and symbol != end else digits
                for digits, symbol in zip(answers, found_QV.argmax(-1).tolist(), strict=True)
            ]
        read += answers
    return read
