"""The adapter behind a frozen language model: from its states of a prompt to the answer's digits.

    p(answer | prompt) = prod_k p(symbol_k | states of the prompt, symbols < k)

A small causal transformer over the language model's states, normalised and projected, then ASK
and the digits answered so far, ones first, as in prompted.py. A digit is a class of a frozen
generator, which draws it; no digit refuses. The class is handed on and not a mixture of class
vectors: a generator has never seen a mixture, and its likelihood stays what it is.

Its examples are (states, answer) in the place of (image, label): states are (B, T, F), zeros
before those of a shorter prompt; answers int64 (B, K) hold digits, END and IGNORED.

Shapes: B prompts, T tokens of a prompt, F features of a state, K symbols, V digits and END, D dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnist_transformer.models.base import Model, in_batches
from mnist_transformer.models.config import ModelConfig
from mnist_transformer.networks.transformer import Transformer, causal_mask_of, rms_norm
from mnist_transformer.prompting.llm import LAYER, MODEL
from mnist_transformer.prompting.prompts import MAX_BYTES
from mnist_transformer.prompting.tokens import READ_AT_ONCE, answer_nats, are_right, read_greedily


@dataclass(frozen=True)
class ReaderConfig(ModelConfig):
    """Sizes of an adapter, and what it stands between.

    Args:
        llm, layer: the language model, and after how many of its layers states are taken.
        state_dim: features F of a state.
        generator: the recipe of the model that draws the digits.
    """

    llm: str = MODEL
    layer: int = LAYER
    state_dim: int = 576
    generator: str = "mnist-patch"
    max_digits: int = 2
    dim: int = 192
    depth: int = 3
    num_heads: int = 3
    mlp_dim: int = 768
    positions: str = "learned_rope"
    dropout: float = 0.1

    def build(self) -> "Reader":
        return Reader(self)


class Reader(Model):
    """See the module's docstring."""

    adamw_modules = ("states", "answer")

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__(config)
        self.states = nn.Linear(config.state_dim, config.dim)
        self.symbols = nn.Embedding(1 + config.num_classes, config.dim)  # ASK, digits
        nn.init.normal_(self.symbols.weight, std=0.02)
        self.transformer = Transformer(
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            num_tokens=MAX_BYTES + config.max_digits,  # a token is a byte or more
            grid_width=1,
            positions=config.positions,
            dropout=config.dropout,
        )
        self.answer = nn.Linear(config.dim, config.num_classes + 1)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    @property
    def image_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of a state, which stands in the place of an image."""
        return (self.config.state_dim,)

    def loss(self, images: Tensor, cond: Tensor) -> Tensor:
        """-log p(answer | prompt) in nats (B,); states (B, T, F) and answers (B, K)."""
        return answer_nats(self.logits(images, cond), cond)

    def figures(self, images: Tensor, cond: Tensor) -> dict[str, float]:
        """The share of prompts that are answered rightly."""

        def right(states_BTF: Tensor, answer_BK: Tensor) -> Tensor:
            return are_right(self.logits(states_BTF, answer_BK), answer_BK)

        right_B = in_batches(self, right, images, cond, batch_size=READ_AT_ONCE)
        return {"answers_right": right_B.mean().item()}

    def logits(self, states_BTF: Tensor, answer_BK: Tensor) -> Tensor:
        """(B, K, V): symbol k given the prompt and the digits before it."""
        num_states = states_BTF.shape[1]
        # Behind END nothing is asked.
        digit_BK = answer_BK[:, :-1].clamp(0, self.config.num_classes - 1)
        symbol_BK = torch.cat([torch.zeros_like(answer_BK[:, :1]), 1 + digit_BK], 1)
        x_BTD = torch.cat([self.states(rms_norm(states_BTF)), self.symbols(symbol_BK)], 1)
        seen_BT = (states_BTF != 0).any(-1)
        seen_BT = torch.cat([seen_BT, torch.ones_like(answer_BK, dtype=torch.bool)], 1)
        num_tokens = x_BTD.shape[1]
        first = self.transformer.num_tokens - num_tokens  # ASK is at the same place in all prompts
        at_T = torch.arange(first, first + num_tokens, device=x_BTD.device)
        at_BT, mask = at_T.expand(len(x_BTD), -1), causal_mask_of(seen_BT)
        state_BTD = self.transformer(x_BTD, at=at_BT, mask=mask)
        return self.answer(state_BTD[:, num_states:])

    @torch.inference_mode()
    def read(self, states_BTF: Tensor) -> list[tuple[int, ...]]:
        """The likeliest digits of each prompt, symbol by symbol; () refuses."""
        states_BTF = states_BTF.to(self.device)

        def logits(so_far: list[tuple[int, ...]]) -> Tensor:
            size = self.config.max_digits
            known = [[*reversed(digits), *[0] * (size - len(digits))] for digits in so_far]
            return self.logits(states_BTF, torch.tensor(known, device=self.device))

        return read_greedily(logits, len(states_BTF), self.config.max_digits)
