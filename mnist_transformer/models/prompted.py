"""From a sentence to a number: one decoder-only transformer over a prompt, its answer, a digit.

    "Show me 2 + four" | ASK 6 | start, patches with ink       of a scan of the digit 6
    "twice 21"         | ASK 2 4 | start, patches with ink     of a scan of 4, then of 2

    p(answer, images | prompt) = prod_k p(symbol_k | prompt, symbols < k)
                               * prod_k p(image_k | prompt, answer, digit k)

The state at ASK predicts the ones, the state at a digit the next digit to the left or END, from
which the model learns when to stop and when to refuse. The scan of one digit follows, with the
tokens, gate and value head of the model of scans (scan.py). The digits of a number are independent
given their classes, so a sequence holds one image. The factors of the answer are exact, those of
the images bounds. ``nll`` is that of an image, given a prompt and its answer.

The answer is a token because the class is worth ln 10 = 2.3 of an image's 200 nats, too little to
learn sums from. In training the first prompt of an image asks for it; the others, refusals among
them, are only read. With probability ``class_drop`` an image stands alone, without class and
prompt, as guidance needs it. A class without a prompt becomes the shortest prompt: its digit.

Shapes: as in patch/model.py, and: R prompts per image, Q = R * B prompts (the first B ask for the
images), T tokens of a text, U tokens of all texts, K symbols, V digits and END.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import Cond, in_batches
from mnist_transformer.models.patch.decoder import Packed
from mnist_transformer.models.scan import Scan, ScanConfig, SidedPatch
from mnist_transformer.networks.attention import causal_mask_of
from mnist_transformer.networks.transformer import KVCache, zeroed
from mnist_transformer.prompting import tokens
from mnist_transformer.prompting.prompts import MAX_BYTES
from mnist_transformer.prompting.tokens import ASK, PAD, Digits


@dataclass(frozen=True)
class PromptedConfig(ScanConfig):
    """Sizes of a prompted model; classes are digits.

    Args:
        max_digits: the largest number of digits of an answer.
        window: number of bytes that a token carries: its own, and those before it.
        answer_weight: the weight of an answer's nats in training, where a scan's is 1.
    """

    max_digits: int = 2
    window: int = 4
    answer_weight: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.data.num_classes <= 10:
            raise ValueError(f"num_classes is {self.data.num_classes}, expected digits: 1 to 10")

    @property
    def num_text_tokens(self) -> int:
        return MAX_BYTES + 1 + self.max_digits

    @property
    def vocabulary_size(self) -> int:
        """Bytes, ASK and digits."""
        return ASK + 1 + self.data.num_classes


class PromptedPatch(SidedPatch):
    """A model of scans behind texts. Conditions (B, 3 + T): class, side, turn, text tokens."""

    def __init__(self, config: PromptedConfig) -> None:
        super().__init__(config, config.num_text_tokens)
        self.max_digits, self.window = config.max_digits, config.window
        self.nothing = config.vocabulary_size  # a token before the first byte
        self.text = nn.Embedding(config.window * (self.nothing + 1), config.scan.dim)
        nn.init.normal_(self.text.weight, std=0.02)
        self.answer = zeroed(nn.Linear(config.scan.dim, config.data.num_classes + 1))

    def embed(self, cond: Tensor) -> Tensor:
        return self.classes.table(cond[:, 0]) + self.embed_form(cond)

    def without_class(self, cond: Tensor) -> Tensor:
        return torch.cat([super().without_class(cond[:, :3]), torch.full_like(cond[:, 3:], PAD)], 1)

    def states(self, packed: Packed, cond: Tensor) -> Tensor:
        return self.states_of_all(packed, cond, cond[:, 3:])[0]

    def states_of_all(self, packed: Packed, cond: Tensor, text_QT: Tensor) -> tuple[Tensor, Tensor]:
        """The states of all images' tokens (M, D) and of all texts' (U, D)."""
        x_MD = packed.x_MD + self.embed(cond).repeat_interleave(packed.length_B, 0)
        x_QTD, at_QT = self.lay_out_text(text_QT)
        seen_QT = text_QT >= 0
        x, at = torch.cat([x_QTD[seen_QT], x_MD]), torch.cat([at_QT[seen_QT], packed.at_M])
        # An image joins its prompt's sequence; an image without a class has its own sequence.
        prompt_Q = torch.arange(len(text_QT), device=x.device)
        alone_B = cond[:, 0] == self.classes.null_class
        sequence = torch.cat([prompt_Q, prompt_Q[: len(cond)] + len(text_QT) * alone_B])
        lengths = torch.cat([seen_QT.sum(1), packed.length_B])
        sequence = sequence.repeat_interleave(lengths)
        order, length = sequence.argsort(stable=True), sequence.bincount()
        ordered = self.transformer.side_by_side(x[order], at[order], length[length > 0])
        state = torch.empty_like(ordered).index_copy(0, order, ordered)
        state_UD, state_MD = state.split([len(x) - len(x_MD), len(x_MD)])
        return state_MD, state_UD

    def read_text(self, cond: Tensor, cache: KVCache) -> Tensor:
        text_XT = cond[:, 3 : 3 + int((cond[:, 3:] >= 0).sum(1).max())]
        seen_XT = text_XT >= 0
        if text_XT.shape[1]:
            x_XTD, at_XT = self.lay_out_text(text_XT)
            self.transformer(x_XTD, cache, at=at_XT, mask=causal_mask_of(seen_XT))
        return seen_XT

    def lay_out_text(self, text_QT: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (Q, T, D) and their positions (Q, T): ASK has the same one in every prompt."""
        before = F.pad(text_QT, (self.window - 1, 0), value=PAD)
        id_QTW = before.masked_fill(before < 0, self.nothing).unfold(1, self.window, 1)
        place_W = torch.arange(self.window, device=text_QT.device)
        x_QTD = self.text(id_QTW + place_W * (self.nothing + 1)).sum(2)
        start_Q = self.decoder.around.num_patches + 1 + MAX_BYTES - tokens.num_bytes(text_QT)
        at_QT = start_Q[:, None] + torch.arange(text_QT.shape[1], device=text_QT.device)
        return x_QTD, at_QT.clamp(max=self.transformer.num_tokens - 1)  # for PAD

    def answers(self, text_QT: Tensor, state_UD: Tensor) -> Tensor:
        """Logits (Q, K, V) of symbol k given the prompt and the digits before it."""
        length_Q = (text_QT >= 0).sum(1)
        ask_Q = length_Q.cumsum(0) - length_Q + tokens.num_bytes(text_QT)
        index_QK = ask_Q[:, None] + torch.arange(self.max_digits, device=ask_Q.device)
        # Nothing is predicted after the last digit, so any state will do there.
        return self.answer(state_UD[index_QK.clamp(max=len(state_UD) - 1)])


class Prompted(Scan):
    """See the module's docstring. Conditions: labels (B,), rows (B, 1 + T) of prompting/tokens.py,
    or (B, R, 1 + T), where the image belongs to the first row."""

    patch: PromptedPatch
    patch_class = PromptedPatch
    adamw_modules = (*Scan.adamw_modules, "patch.answer")

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats (B,) of scan and side, and ``answer_weight`` times those of answers to prompts."""
        rows_BRT = self._rows(cond)
        text_QT = rows_BRT[:, :, 1:].transpose(0, 1).flatten(0, 1)
        row_BT = rows_BRT[:, 0].clone()
        row_BT[:, 0] = label_B = self.patch.classes.with_drops(row_BT[:, 0])
        has_B, scan_B, side_B = self.look_up(images)
        scan_B, cond = self.turn(scan_B, self.sided(row_BT, side_B))
        packed = self.patch.decoder.lay_out(scan_B)
        state_MD, state_UD = self.patch.states_of_all(packed, cond, text_QT)
        nats_B = self.side_nats(label_B, side_B) + self.patch.fit(packed, state_MD, cond)
        answer_Q = tokens.answer_nats(self.patch.answers(text_QT, state_UD), self._targets(text_QT))
        answer_B = answer_Q.unflatten(0, (-1, len(images))).mean(0)
        return nats_B.where(has_B, 0) + self.config.answer_weight * answer_B

    def figures(self, images: Tensor, cond: Tensor) -> dict[str, float]:
        """The share of prompts that are answered correctly."""
        text_QT = self._rows(cond)[:, :, 1:].flatten(0, 1)
        logits = in_batches(self, self.answer_logits, text_QT, batch_size=tokens.READ_AT_ONCE)
        return tokens.answers_right(logits, self._targets(text_QT))

    @torch.inference_mode()
    def read(self, prompts: Sequence[str]) -> list[Digits]:
        """The likeliest digits of each prompt; () refuses. Raises ValueError as ``encode``."""

        def logits(prompts: Sequence[str], so_far: list[Digits]) -> Tensor:
            rows = list(map(tokens.encode, prompts, so_far))
            return self.answer_logits(tokens.stack(rows).to(self.device))

        return tokens.read_greedily(logits, prompts, self.config.max_digits)

    def answer_logits(self, text_QT: Tensor) -> Tensor:
        """(Q, K, V): symbol k given the prompt and the digits before it."""
        x_QTD, at_QT = self.patch.lay_out_text(text_QT)
        seen_QT = text_QT >= 0
        lengths_Q = seen_QT.sum(1)
        states = self.patch.transformer.side_by_side(x_QTD[seen_QT], at_QT[seen_QT], lengths_Q)
        return self.patch.answers(text_QT, states)

    def _targets(self, text_QT: Tensor) -> Tensor:
        return tokens.targets(text_QT, self.config.data.num_classes, self.config.max_digits)

    # --- conditions ---

    def _rows(self, cond: Tensor) -> Tensor:
        """Any condition as (B, R, 1 + T)."""
        if cond.ndim > 1:
            return cond if cond.ndim == 3 else cond[:, None]
        row_BT = torch.stack([cond, cond + ord("0"), torch.full_like(cond, ASK), cond + ASK + 1], 1)
        row_BT[:, 1:].masked_fill_((cond == self.num_classes)[:, None], PAD)
        return row_BT[:, None]

    def check_cond(self, cond: Cond, num_images: int) -> Tensor:
        """Rows (B, 1 + T) on the model's device, from labels or rows; of several rows the first."""
        cond = None if cond is None else torch.as_tensor(cond)
        if cond is None or cond.ndim == 1:
            return self._rows(super().check_cond(cond, num_images))[:, 0]
        row_BT = cond[:, 0] if cond.ndim == 3 else cond
        longest = 1 + self.config.num_text_tokens
        if row_BT.ndim != 2 or len(row_BT) != num_images or not 1 <= row_BT.shape[1] <= longest:
            raise ValueError(
                f"got conditions of shape {tuple(cond.shape)} for {num_images} seeds, "
                f"expected a row of 1 to {longest} tokens per seed"
            )
        if row_BT.dtype != torch.int64:
            raise ValueError(f"tokens are {row_BT.dtype}, expected torch.int64")
        label_B, text_BT = row_BT[:, 0], row_BT[:, 1:]
        wrong_BT = (text_BT < PAD) | (text_BT >= self.config.vocabulary_size)
        wrong_BT[:, 1:] |= (text_BT[:, 1:] >= 0) & (text_BT[:, :-1] < 0)  # a token after PAD
        if wrong_BT.any() or ((label_B < 0) | (label_B > self.num_classes)).any():
            raise ValueError(
                f"rows hold other tokens, expected a class up to {self.num_classes} and then ids "
                f"below {self.config.vocabulary_size} with {PAD} at the end only"
            )
        return row_BT.to(self.device)
