"""The adapter behind a frozen language model: from its states of a prompt to the answer's digits.

    p(answer | prompt) = prod_k p(symbol_k | states of the prompt, symbols < k)

A small causal transformer reads the language model's states, normalised and projected, then ASK
and the digits so far, ones first, as in prompted.py. A frozen generator draws each digit
from its class, not from a mixture of class vectors, which it never saw.

Training examples are (states, answer) in place of (image, label). States are (B, T, F), with
zeros before those of a shorter prompt. Answers int64 (B, K) hold digits, END and IGNORED.

Shapes: B prompts, T tokens of a prompt, F features of a state, K symbols, V digits and END, D dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnist_transformer.models.base import Model, in_batches
from mnist_transformer.models.config import TransformerConfig
from mnist_transformer.networks.attention import causal_mask_of
from mnist_transformer.networks.transformer import rms_norm, zeroed
from mnist_transformer.options import FLAGSHIP
from mnist_transformer.prompting import tokens
from mnist_transformer.prompting.llm import LAYER, MODEL
from mnist_transformer.prompting.prompts import MAX_BYTES
from mnist_transformer.prompting.tokens import Digits


@dataclass(frozen=True)
class ReaderConfig(TransformerConfig):
    """Sizes of an adapter, and the models on both sides of it.

    Args:
        llm, layer: the language model, and the layer after which its states are taken.
        state_dim: features F of a state.
        generator: the recipe of the model that draws the digits.
    """

    depth: int = 3
    num_heads: int = 3
    positions: str = "learned_rope"
    dropout: float = 0.1
    llm: str = MODEL
    layer: int = LAYER
    state_dim: int = 576
    generator: str = FLAGSHIP
    max_digits: int = 2

    @property
    def image_shape(self) -> tuple[int]:
        """The shape of a state, which takes the place of an image in training."""
        return (self.state_dim,)


class Reader(Model):
    """See the module's docstring."""

    adamw_modules = ("states", "answer")

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__(config)
        self.states = nn.Linear(config.state_dim, config.dim)
        self.symbols = nn.Embedding(1 + config.data.num_classes, config.dim)  # ASK, digits
        nn.init.normal_(self.symbols.weight, std=0.02)
        # A token of the language model is at least one byte.
        self.transformer = config.transformer(MAX_BYTES + config.max_digits, grid_width=1)
        self.answer = zeroed(nn.Linear(config.dim, config.data.num_classes + 1))

    def loss(self, states_BTF: Tensor, answer_BK: Tensor) -> Tensor:
        """-log p(answer | prompt) in nats (B,)."""
        return tokens.answer_nats(self.logits(states_BTF, answer_BK), answer_BK)

    def figures(self, states_BTF: Tensor, answer_BK: Tensor) -> dict[str, float]:
        """The share of prompts that are answered correctly."""
        columns = states_BTF, answer_BK
        logits = in_batches(self, self.logits, *columns, batch_size=tokens.READ_AT_ONCE)
        return tokens.answers_right(logits, answer_BK)

    def logits(self, states_BTF: Tensor, answer_BK: Tensor) -> Tensor:
        """(B, K, V): symbol k given the prompt and the digits before it."""
        # Nothing is predicted after END, so any digit may stand for it.
        digit_BK = answer_BK[:, :-1].clamp(0, self.config.data.num_classes - 1)
        symbol_BK = torch.cat([torch.zeros_like(answer_BK[:, :1]), 1 + digit_BK], 1)
        x_BTD = torch.cat([self.states(rms_norm(states_BTF)), self.symbols(symbol_BK)], 1)
        seen_BT = torch.cat([(states_BTF != 0).any(-1), torch.ones_like(symbol_BK).bool()], 1)
        last = self.transformer.num_tokens  # so ASK has the same position in all prompts
        at_T = torch.arange(last - x_BTD.shape[1], last, device=x_BTD.device)
        at_BT = at_T.expand(len(x_BTD), -1)
        state_BTD = self.transformer(x_BTD, at=at_BT, mask=causal_mask_of(seen_BT))
        return self.answer(state_BTD[:, states_BTF.shape[1] :])

    @torch.inference_mode()
    def read(self, states_BTF: Tensor) -> list[Digits]:
        """The likeliest digits of each prompt; () refuses."""
        size = self.config.max_digits

        def logits(states_BTF: Tensor, so_far: list[Digits]) -> Tensor:
            known = [[*reversed(digits), *[0] * (size - len(digits))] for digits in so_far]
            return self.logits(states_BTF, torch.tensor(known, device=self.device))

        return tokens.read_greedily(logits, states_BTF.to(self.device), size)
