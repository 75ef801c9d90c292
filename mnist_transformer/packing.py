"""Sequences of different lengths side by side in the rows of one batch.

Shapes: B sequences, M tokens of all of them, L places of a row.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mnist_transformer.transformer import Transformer


class Packing:
    """Sequences of different lengths side by side in rows of ``row_length`` places.

    A batch padded to its longest image would be half padding. Best fit, longest first.
    """

    def __init__(self, lengths_B: Tensor, row_length: int) -> None:
        lengths = lengths_B.tolist()
        first, num_rows = [0] * len(lengths), 0
        rows_by_space: list[list[int]] = [[] for _ in range(row_length + 1)]
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            enough = range(lengths[i], row_length + 1)
            space = next((space for space in enough if rows_by_space[space]), None)
            if space is None:
                rows_by_space[row_length].append(num_rows)
                num_rows, space = num_rows + 1, row_length
            row = rows_by_space[space].pop()
            first[i] = (row + 1) * row_length - space
            rows_by_space[space - lengths[i]].append(row)
        self.shape = (num_rows, row_length)
        device = lengths_B.device
        image_M = torch.arange(len(lengths), device=device).repeat_interleave(lengths_B)
        # Place of each token: its image's first place, and on from there.
        starts_B = lengths_B.cumsum(0) - lengths_B
        shift_B = torch.tensor(first, device=device) - starts_B
        self.place_M = torch.arange(len(image_M), device=device) + shift_B[image_M]
        owner = torch.full((num_rows * row_length,), -1, device=device)
        owner_RL = owner.index_copy(0, self.place_M, image_M).view(self.shape)
        same = owner_RL[:, :, None] == owner_RL[:, None, :]
        self.mask = same.tril()[:, None]  # (rows, 1, L, L): earlier tokens of the same image

    def rows(self, x_M: Tensor) -> Tensor:
        """(M, ...) to (rows, L, ...), zero where no token is."""
        flat = x_M.new_zeros(self.shape[0] * self.shape[1], *x_M.shape[1:])
        return flat.index_copy(0, self.place_M, x_M).unflatten(0, self.shape)

    def tokens(self, x_RL: Tensor) -> Tensor:
        """(rows, L, ...) to (M, ...)."""
        return x_RL.flatten(0, 1)[self.place_M]

    def through(self, transformer: "Transformer", x_MD: Tensor, at_M: Tensor) -> Tensor:
        """States (M, D) of tokens at these positions, each sequence for itself."""
        states_RLD = transformer(self.rows(x_MD), at=self.rows(at_M), mask=self.mask)
        return self.tokens(states_RLD)
