"""From a sentence to a number: one decoder-only transformer over a prompt, its answer, a digit.

    "Show me 2 + four" | ASK 6 | start, patches with ink       of the digit 6
    "twice 21"         | ASK 2 4 | start, patches with ink     of the digit 4, then of the 2

    p(answer, images | prompt) = prod_k p(symbol_k | prompt, symbols < k)
                               * prod_k p(image_k | prompt, answer, digit k)

Every token sees those before it. Bytes are only read; the state at ASK says the ones of the
answer, the state of a digit the one before it, or END: that a number has one digit or two, and
that a request is refused (END at once), is learned as the digits are. Behind the answer stands
the image of one of its digits, as the patch model draws it: whose tokens, gate and pixel head
these are. The digits of a number are independent of one another given their classes, so each
image stands behind the prompt by itself: nothing is lost, and a sequence stays short. All
factors are exact; ``nll`` is that of an image, given a prompt and its answer.

Why the answer is a token: the class is worth ln 10 = 2.3 of an image's 400 nats, too little to
learn sums from. Said before it is drawn, it is learned by itself, and ``answer_weight`` times as
much as a pixel. In training one prompt an image asks for it, further ones are only read (among
them those to be refused). With probability ``class_drop`` an image stands alone, without class
and prompt: what guidance compares with. A class without a prompt, as ``draw`` gives it, becomes
the plainest prompt there is: its digit.

Shapes: as in patch.py, and: Q prompts, R prompts an image (Q = R * B, the images' own ones
first), T tokens of a text, U tokens of all texts, K symbols of an answer, V digits and END.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import in_batches
from mnist_transformer.models.patch_law.model import Patch, PatchConfig, Picture
from mnist_transformer.networks.attention import causal_mask_of
from mnist_transformer.networks.transformer import KVCache
from mnist_transformer.prompting.prompts import MAX_BYTES
from mnist_transformer.prompting.tokens import (
    ASK,
    PAD,
    READ_AT_ONCE,
    answer_nats,
    are_right,
    encode,
    num_bytes,
    read_greedily,
    stack,
    targets,
)


@dataclass(frozen=True)
class PromptedConfig(PatchConfig):
    """Sizes of a prompted model; classes are digits.

    Args:
        max_digits: how many digits an answer has at most.
        window: how many bytes a token carries: its own, and those just before it.
        answer_weight: what a nat of an answer counts in training, a pixel's being 1.
    """

    positions: str = "learned_rope"
    max_digits: int = 2
    window: int = 4
    answer_weight: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_classes <= 10:
            raise ValueError(f"num_classes is {self.num_classes}, expected digits: 1 to 10")
        if self.built_in_guidance != 1:
            raise ValueError(
                f"built_in_guidance is {self.built_in_guidance}, expected 1 for a prompted model"
            )

    @property
    def num_text_tokens(self) -> int:
        return MAX_BYTES + 1 + self.max_digits

    def build(self) -> "Prompted":
        return Prompted(self)


class Prompted(Patch):
    """See the module's docstring. Conditions: labels (B,), rows (B, 1 + T) of prompt_tokens.py,
    or (B, R, 1 + T), of which the first row is of the image and the others are only read."""

    adamw_modules = (*Patch.adamw_modules, "answer")

    def __init__(self, config: PromptedConfig) -> None:
        super().__init__(config)
        self.vocabulary_size = ASK + 1 + config.num_classes
        # Bytes, ASK, digits, and what is before the first byte, for each place in the window.
        self.text = nn.Embedding(config.window * (self.vocabulary_size + 1), config.dim)
        nn.init.normal_(self.text.weight, std=0.02)
        self.answer = nn.Linear(config.dim, config.num_classes + 1)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats of the image, and ``answer_weight`` times those of an answer to a prompt (B,)."""
        rows_BRT = self._rows(cond)
        text_QT = rows_BRT[:, :, 1:].transpose(0, 1).flatten(0, 1)
        label_B = self.classes.with_drops(rows_BRT[:, 0, 0])
        nats_BHW, state_UD = self._read_and_look(images, label_B, text_QT)
        answer_Q = answer_nats(self._logits(text_QT, state_UD), self._targets(text_QT))
        answer_B = answer_Q.unflatten(0, (-1, len(images))).mean(0)
        return nats_BHW.flatten(1).sum(-1) + self.config.answer_weight * answer_B

    def pixel_nats(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W), given the prompt and its answer."""
        row_BT = self._rows(cond)[:, 0]
        return self._read_and_look(images, row_BT[:, 0], row_BT[:, 1:])[0]

    def figures(self, images: Tensor, cond: Tensor) -> dict[str, float]:
        """The share of prompts that are answered rightly."""

        def right(text_QT: Tensor) -> Tensor:
            return are_right(self.answer_logits(text_QT), self._targets(text_QT))

        text_QT = self._rows(cond)[:, :, 1:].flatten(0, 1)
        right_Q = in_batches(self, right, text_QT, batch_size=READ_AT_ONCE)
        return {"answers_right": right_Q.mean().item()}

    # --- reading ---

    @torch.inference_mode()
    def read(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """The digits that each prompt asks for, the likeliest ones; () refuses.

        Raises:
            ValueError: a prompt that is empty or too long.
        """
        answers = []
        for first in range(0, len(prompts), READ_AT_ONCE):
            part = prompts[first : first + READ_AT_ONCE]

            def logits(so_far: list[tuple[int, ...]], part: Sequence[str] = part) -> Tensor:
                rows = [encode(text, digits) for text, digits in zip(part, so_far, strict=True)]
                return self.answer_logits(stack(rows).to(self.device))

            answers += read_greedily(logits, len(part), self.config.max_digits)
        return answers

    def answer_logits(self, text_QT: Tensor) -> Tensor:
        """(Q, K, V): symbol k given the prompt and the digits before it."""
        x_QTD, at_QT = self._lay_out_text(text_QT)
        seen_QT = text_QT >= 0
        state_UD = self.transformer.side_by_side(x_QTD[seen_QT], at_QT[seen_QT], seen_QT.sum(1))
        return self._logits(text_QT, state_UD)

    def _logits(self, text_QT: Tensor, state_UD: Tensor) -> Tensor:
        length_Q = (text_QT >= 0).sum(1)
        ask_Q = length_Q.cumsum(0) - length_Q + num_bytes(text_QT)
        index_QK = ask_Q[:, None] + torch.arange(self.config.max_digits, device=ask_Q.device)
        # Behind the last digit nothing is asked; any state will do.
        return self.answer(state_UD[index_QK.clamp(max=len(state_UD) - 1)])

    def _targets(self, text_QT: Tensor) -> Tensor:
        return targets(text_QT, self.config.num_classes, self.config.max_digits)

    # --- tokens and states ---

    def _rows(self, cond: Tensor) -> Tensor:
        """Any condition as (B, R, 1 + T)."""
        if cond.ndim == 1:
            digit = torch.stack([cond, cond + ord("0"), torch.full_like(cond, ASK)], 1)
            row_BT = torch.cat([digit, cond[:, None] + ASK + 1], 1)
            row_BT[:, 1:].masked_fill_((cond == self.classes.null_class)[:, None], PAD)
            return row_BT[:, None]
        return cond if cond.ndim == 3 else cond[:, None]

    def _lay_out_text(self, text_QT: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (Q, T, D) and their positions (Q, T): ASK is at the same one in every prompt."""
        nothing = self.vocabulary_size
        id_QT = torch.where(text_QT >= 0, text_QT, nothing)
        before = F.pad(id_QT, (self.config.window - 1, 0), value=nothing)
        id_QTW = before.unfold(1, self.config.window, 1)
        place_W = torch.arange(self.config.window, device=id_QT.device)
        x_QTD = self.text(id_QTW + place_W * (nothing + 1)).sum(2)
        start_Q = self.num_patches + 1 + MAX_BYTES - num_bytes(text_QT)
        at_QT = start_Q[:, None] + torch.arange(text_QT.shape[1], device=id_QT.device)
        return x_QTD, at_QT.clamp(max=self.transformer.num_tokens - 1)  # of PAD

    def _read_and_look(
        self, images: Tensor, label_B: Tensor, text_QT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Nats of each pixel (B, H, W), and the states of all texts' tokens (U, D)."""
        picture = self.lay_out(images)
        class_MD = self.classes.table(label_B).repeat_interleave(picture.length_B, 0)
        x_QTD, at_QT = self._lay_out_text(text_QT)
        seen_QT = text_QT >= 0
        x = torch.cat([x_QTD[seen_QT], picture.x_MD + class_MD])
        at = torch.cat([at_QT[seen_QT], picture.at_M])
        order, lengths = self._sequences(picture, label_B, seen_QT.sum(1))
        ordered = self.transformer.side_by_side(x[order], at[order], lengths)
        state = torch.empty_like(ordered).index_copy(0, order, ordered)
        state_UD, state_MD = state.split([len(x) - len(class_MD), len(class_MD)])
        return self.nats_of(picture, *self.logits(picture, state_MD)), state_UD

    def _sequences(
        self, picture: Picture, label_B: Tensor, length_Q: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where tokens of all texts, then of all images, belong, and the sequences' lengths.

        An image follows its prompt; one without a class stands alone.
        """
        num_images, num_prompts = len(label_B), len(length_Q)
        prompt_Q = torch.arange(num_prompts, device=label_B.device)
        piece_U = (2 * prompt_Q).repeat_interleave(length_Q)
        piece_M = (2 * prompt_Q[:num_images] + 1).repeat_interleave(picture.length_B)
        order = torch.cat([piece_U, piece_M]).argsort(stable=True)
        length_Q2 = torch.stack([length_Q, torch.zeros_like(length_Q)], 1)
        length_Q2[:num_images, 1] = picture.length_B
        begins_Q2 = torch.stack([torch.ones_like(prompt_Q), torch.zeros_like(prompt_Q)], 1)
        begins_Q2[:num_images, 1] = (label_B == self.classes.null_class).long()
        sequence = begins_Q2.flatten().cumsum(0) - 1
        lengths = length_Q.new_zeros(int(sequence[-1]) + 1)
        lengths = lengths.index_add(0, sequence, length_Q2.flatten())
        return order, lengths[lengths > 0]

    # --- conditions, and drawing ---

    def check_cond(self, cond: Tensor | Sequence[int] | None, num_images: int) -> Tensor:
        """Rows (B, 1 + T) on the model's device, of labels, of rows or of the first ones."""
        cond = None if cond is None else torch.as_tensor(cond)
        if cond is None or cond.ndim == 1:
            return self._rows(super().check_cond(cond, num_images))[:, 0]
        row_BT = cond[:, 0] if cond.ndim == 3 else cond
        longest = 1 + self.config.num_text_tokens
        if row_BT.ndim != 2 or len(row_BT) != num_images or not 1 <= row_BT.shape[1] <= longest:
            raise ValueError(
                f"got conditions of shape {tuple(cond.shape)} for {num_images} seeds, "
                f"expected a row of 1 to {longest} tokens a seed"
            )
        if row_BT.dtype != torch.int64:
            raise ValueError(f"tokens are {row_BT.dtype}, expected torch.int64")
        text_BT, label_B = row_BT[:, 1:], row_BT[:, 0]
        gap_BT = (text_BT[:, 1:] >= 0) & (text_BT[:, :-1] < 0)
        wrong = bool(((text_BT < PAD) | (text_BT >= self.vocabulary_size)).any() or gap_BT.any())
        if wrong or bool(((label_B < 0) | (label_B > self.num_classes)).any()):
            raise ValueError(
                f"rows hold other tokens, expected a class up to {self.num_classes} and then ids "
                f"below {self.vocabulary_size} with {PAD} at the end only"
            )
        return row_BT.to(self.device)

    def with_null(self, cond: Tensor, guidance: float) -> Tensor:
        if guidance == 1:
            return cond
        null = torch.full_like(cond, PAD)
        null[:, 0] = self.classes.null_class
        return torch.cat([cond, null])

    def class_vectors(self, cond: Tensor) -> Tensor:
        return self.classes.table(cond[:, 0])

    def read_text(self, cond: Tensor, cache: KVCache) -> Tensor:
        text_XT = cond[:, 1:]
        text_XT = text_XT[:, : int((text_XT >= 0).sum(1).max())]
        seen_XT = text_XT >= 0
        if text_XT.shape[1]:
            x_XTD, at_XT = self._lay_out_text(text_XT)
            self.transformer(x_XTD, cache, at=at_XT, mask=causal_mask_of(seen_XT))
        return seen_XT
