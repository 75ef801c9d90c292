"""Prompts and answers as tokens, and how well an answer is read.

A prompt is its bytes in UTF-8, then ASK, then the digits of its answer: none for a request that
is to be refused. The ones are said first, as one calculates by hand: the tens then follow from
them and from what is carried (Lee et al., "Teaching arithmetic to small transformers", arXiv
2307.03381). A condition of a model that draws from prompts is a row

    what to draw | bytes, ASK, digits | PAD ...

with the class of the image first. A model reads an answer symbol by symbol: its state at ASK
says the ones, its state at a digit the one to the left of it; END says that there is none, so
that a refusal is an END at once.

Shapes: Q prompts, T tokens, K symbols an answer has at most, V digits and END.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_transformer.prompting.prompts import MAX_BYTES

ASK = 256  # behind the bytes; digit d is ASK + 1 + d
PAD = -1
IGNORED = -100  # cross_entropy's: nothing is asked here
READ_AT_ONCE = 250  # prompts


def encode(text: str, digits: Sequence[int] = ()) -> list[int]:
    """Tokens of a prompt with its answer, or with none yet.

    Args:
        digits: as they are written, most significant first.

    Raises:
        ValueError: an empty text, or one of more than MAX_BYTES bytes.
    """
    # Half of a surrogate pair, as a terminal may send it, is no character.
    content = text.encode(errors="replace")
    if not text.strip():
        raise ValueError("the prompt is empty, expected a sentence")
    if len(content) > MAX_BYTES:
        raise ValueError(f"the prompt has {len(content)} bytes, expected at most {MAX_BYTES}")
    return [*content, ASK, *(ASK + 1 + digit for digit in reversed(digits))]


def stack(rows: Sequence[Sequence[int]]) -> Tensor:
    """int64 (N, T): rows of different lengths, padded."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], dtype=torch.int64)


def targets(text_QT: Tensor, end: int, num_symbols: int) -> Tensor:
    """int64 (Q, K): the symbols that answer each prompt, END, and IGNORED from there on."""
    digit_QT = text_QT - (ASK + 1)
    place_Q = num_bytes(text_QT) + 1  # of the ones
    index_QK = place_Q[:, None] + torch.arange(num_symbols, device=text_QT.device)
    padded_QT = F.pad(digit_QT, (0, num_symbols + 1), value=PAD)
    digit_QK = padded_QT.gather(1, index_QK)
    ended_QK = (digit_QK < 0).cumsum(1)
    target_QK = torch.where(ended_QK == 0, digit_QK, torch.where(ended_QK == 1, end, IGNORED))
    return target_QK.masked_fill(~(text_QT == ASK).any(1, keepdim=True), IGNORED)


def num_bytes(text_QT: Tensor) -> Tensor:
    return ((text_QT >= 0) & (text_QT < ASK)).sum(1)


def answer_nats(logits_QKV: Tensor, target_QK: Tensor) -> Tensor:
    """Exact -log p(answer | prompt), float32 (Q,)."""
    nats = F.cross_entropy(
        logits_QKV.flatten(0, 1).float(),
        target_QK.flatten(),
        reduction="none",
        ignore_index=IGNORED,
    )
    return nats.view_as(target_QK).sum(1)


def are_right(logits_QKV: Tensor, target_QK: Tensor) -> Tensor:
    """Whether the likeliest answer, symbol by symbol, is the right one: bool (Q,)."""
    return ((logits_QKV.argmax(-1) == target_QK) | (target_QK == IGNORED)).all(1)


def read_greedily(
    logits: Callable[[list[tuple[int, ...]]], Tensor], num_prompts: int, num_symbols: int
) -> list[tuple[int, ...]]:
    """The likeliest answer of every prompt, symbol by symbol, as it is written; () is a refusal.

    Args:
        logits: (Q, K, V) given the digits that each prompt has been answered with so far, as
            they are written.
    """
    answers: list[tuple[int, ...]] = [()] * num_prompts
    for k in range(num_symbols):
        found_QV = logits(answers)[:, k]
        end = found_QV.shape[1] - 1
        answers = [
            (symbol, *digits) if len(digits) == k and symbol != end else digits
            for digits, symbol in zip(answers, found_QV.argmax(-1).tolist(), strict=True)
        ]
    return answers
