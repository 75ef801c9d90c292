"""From a sentence to a number: one decoder-only transformer over a prompt, its answer, a digit.

    "Show me 2 + four" | ASK 6 | start, patches with ink       of the digit 6
    "twice 21"         | ASK 2 4 | start, patches with ink     of the digit 4, then of the 2

    p(answer, images | prompt) = prod_k p(symbol_k | prompt, symbols < k)
                               * prod_k p(image_k | prompt, answer, digit k)

The state at ASK predicts the ones, the state at a digit the next digit to the left or END, from
which the model learns when to stop and when to refuse. The image of one digit follows, with the
tokens, gate and pixel head of the patch model. The digits of a number are independent given their
classes, so a sequence holds one image. All factors are exact. ``nll`` is that of an image, given
a prompt and its answer.

The answer is a token because the class is worth ln 10 = 2.3 of an image's 400 nats, too little to
learn sums from. In training the first prompt of an image asks for it; the others, refusals among
them, are only read. With probability ``class_drop`` an image stands alone, without class and
prompt, as guidance needs it. A class without a prompt becomes the shortest prompt: its digit.

Shapes: as in model.py, and: R prompts per image, Q = R * B prompts (the first B ask for
the images), T tokens of a text, U tokens of all texts, K symbols, V digits and END.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.models.base import in_batches
from mnist_transformer.models.patch_law.model import Patch, PatchConfig
from mnist_transformer.networks.attention import causal_mask_of
from mnist_transformer.networks.transformer import KVCache
from mnist_transformer.prompting import tokens
from mnist_transformer.prompting.prompts import MAX_BYTES
from mnist_transformer.prompting.tokens import ASK, PAD, Digits


@dataclass(frozen=True)
class PromptedConfig(PatchConfig):
    """Sizes of a prompted model; classes are digits.

    Args:
        max_digits: the largest number of digits of an answer.
        window: number of bytes that a token carries: its own, and those before it.
        answer_weight: the weight of an answer's nats in training, where a pixel's is 1.
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
    """See the module's docstring. Conditions: labels (B,), rows (B, 1 + T) of prompting/tokens.py,
    or (B, R, 1 + T), where the image belongs to the first row."""

    adamw_modules = (*Patch.adamw_modules, "answer")

    def __init__(self, config: PromptedConfig) -> None:
        super().__init__(config)
        self.vocabulary_size = ASK + 1 + config.num_classes
        # Bytes, ASK, digits, and a token before the first byte, for each place in the window.
        self.text = nn.Embedding(config.window * (self.vocabulary_size + 1), config.dim)
        nn.init.normal_(self.text.weight, std=0.02)
        self.answer = nn.Linear(config.dim, config.num_classes + 1)
        for parameter in self.answer.parameters():
            nn.init.zeros_(parameter)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats of the image, and ``answer_weight`` times those of an answer to a prompt (B,)."""
        rows_BRT = self._rows(cond)
        text_QT = rows_BRT[:, :, 1:].transpose(0, 1).flatten(0, 1)
        label_B = self.classes.with_drops(rows_BRT[:, 0, 0])
        nats_BHW, state_UD = self._nats_and_states(images, label_B, text_QT)
        answer_Q = tokens.answer_nats(self._logits(text_QT, state_UD), self._targets(text_QT))
        answer_B = answer_Q.unflatten(0, (-1, len(images))).mean(0)
        return nats_BHW.flatten(1).sum(-1) + self.config.answer_weight * answer_B

    def pixel_nats(self, images: Tensor, cond: Tensor) -> Tensor:
        """Nats of each pixel (B, H, W), given the prompt and its answer."""
        row_BT = self._rows(cond)[:, 0]
        return self._nats_and_states(images, row_BT[:, 0], row_BT[:, 1:])[0]

    def figures(self, images: Tensor, cond: Tensor) -> dict[str, float]:
        """The share of prompts that are answered correctly."""

        def right(text_QT: Tensor) -> Tensor:
            return tokens.are_right(self.answer_logits(text_QT), self._targets(text_QT))

        text_QT = self._rows(cond)[:, :, 1:].flatten(0, 1)
        right_Q = in_batches(self, right, text_QT, batch_size=tokens.READ_AT_ONCE)
        return {"answers_right": right_Q.mean().item()}

    @torch.inference_mode()
    def read(self, prompts: Sequence[str]) -> list[Digits]:
        """The likeliest digits of each prompt; () refuses. Raises ValueError as ``encode``."""

        def logits(prompts: Sequence[str], so_far: list[Digits]) -> Tensor:
            rows = list(map(tokens.encode, prompts, so_far))
            return self.answer_logits(tokens.stack(rows).to(self.device))

        return tokens.read_greedily(logits, prompts, self.config.max_digits)

    def answer_logits(self, text_QT: Tensor) -> Tensor:
        """(Q, K, V): symbol k given the prompt and the digits before it."""
        x_QTD, at_QT = self._lay_out_text(text_QT)
        seen_QT = text_QT >= 0
        state_UD = self.transformer.side_by_side(x_QTD[seen_QT], at_QT[seen_QT], seen_QT.sum(1))
        return self._logits(text_QT, state_UD)

    def _logits(self, text_QT: Tensor, state_UD: Tensor) -> Tensor:
        length_Q = (text_QT >= 0).sum(1)
        ask_Q = length_Q.cumsum(0) - length_Q + tokens.num_bytes(text_QT)
        index_QK = ask_Q[:, None] + torch.arange(self.config.max_digits, device=ask_Q.device)
        # Nothing is predicted behind the last digit, so any state will do there.
        return self.answer(state_UD[index_QK.clamp(max=len(state_UD) - 1)])

    def _targets(self, text_QT: Tensor) -> Tensor:
        return tokens.targets(text_QT, self.config.num_classes, self.config.max_digits)

    # --- tokens and states ---

    def _rows(self, cond: Tensor) -> Tensor:
        """Any condition as (B, R, 1 + T)."""
        if cond.ndim > 1:
            return cond if cond.ndim == 3 else cond[:, None]
        row_BT = torch.stack([cond, cond + ord("0"), torch.full_like(cond, ASK), cond + ASK + 1], 1)
        row_BT[:, 1:].masked_fill_((cond == self.classes.null_class)[:, None], PAD)
        return row_BT[:, None]

    def _lay_out_text(self, text_QT: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (Q, T, D) and their positions (Q, T): ASK is at the same one in every prompt."""
        nothing = self.vocabulary_size
        before = F.pad(text_QT, (self.config.window - 1, 0), value=PAD)
        id_QTW = before.masked_fill(before < 0, nothing).unfold(1, self.config.window, 1)
        place_W = torch.arange(self.config.window, device=text_QT.device)
        x_QTD = self.text(id_QTW + place_W * (nothing + 1)).sum(2)
        start_Q = self.num_patches + 1 + MAX_BYTES - tokens.num_bytes(text_QT)
        at_QT = start_Q[:, None] + torch.arange(text_QT.shape[1], device=text_QT.device)
        return x_QTD, at_QT.clamp(max=self.transformer.num_tokens - 1)  # of PAD

    def _nats_and_states(
        self, images: Tensor, label_B: Tensor, text_QT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Nats of each pixel (B, H, W), and the states of all texts' tokens (U, D)."""
        picture = self.lay_out(images)
        class_MD = self.classes.table(label_B).repeat_interleave(picture.length_B, 0)
        x_QTD, at_QT = self._lay_out_text(text_QT)
        seen_QT = text_QT >= 0
        x = torch.cat([x_QTD[seen_QT], picture.x_MD + class_MD])
        at = torch.cat([at_QT[seen_QT], picture.at_M])
        # An image joins its prompt's sequence; one without a class has a sequence of its own.
        prompt_Q = torch.arange(len(text_QT), device=x.device)
        own_B = prompt_Q[: len(images)] + len(text_QT) * (label_B == self.classes.null_class)
        sequence = torch.cat([prompt_Q, own_B]).repeat_interleave(
            torch.cat([seen_QT.sum(1), picture.length_B])
        )
        order, length = sequence.argsort(stable=True), sequence.bincount()
        ordered = self.transformer.side_by_side(x[order], at[order], length[length > 0])
        state = torch.empty_like(ordered).index_copy(0, order, ordered)
        state_UD, state_MD = state.split([len(x) - len(class_MD), len(class_MD)])
        return self.nats_of(picture, *self.logits(picture, state_MD)), state_UD

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
                f"expected a row of 1 to {longest} tokens per seed"
            )
        if row_BT.dtype != torch.int64:
            raise ValueError(f"tokens are {row_BT.dtype}, expected torch.int64")
        label_B, text_BT = row_BT[:, 0], row_BT[:, 1:]
        wrong_BT = (text_BT < PAD) | (text_BT >= self.vocabulary_size)
        wrong_BT[:, 1:] |= (text_BT[:, 1:] >= 0) & (text_BT[:, :-1] < 0)  # a token after PAD
        if wrong_BT.any() or ((label_B < 0) | (label_B > self.num_classes)).any():
            raise ValueError(
                f"rows hold other tokens, expected a class up to {self.num_classes} and then ids "
                f"below {self.vocabulary_size} with {PAD} at the end only"
            )
        return row_BT.to(self.device)

    def with_null(self, cond: Tensor, guidance: float) -> Tensor:
        null = torch.full_like(cond, PAD)
        null[:, 0] = self.classes.null_class
        return cond if guidance == 1 else torch.cat([cond, null])

    def class_vectors(self, cond: Tensor) -> Tensor:
        return self.classes.table(cond[:, 0])

    def read_text(self, cond: Tensor, cache: KVCache) -> Tensor:
        text_XT = cond[:, 1 : 1 + int((cond[:, 1:] >= 0).sum(1).max())]
        seen_XT = text_XT >= 0
        if text_XT.shape[1]:
            x_XTD, at_XT = self._lay_out_text(text_XT)
            self.transformer(x_XTD, cache, at=at_XT, mask=causal_mask_of(seen_XT))
        return seen_XT
