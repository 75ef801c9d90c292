"""Classes as vectors, and guidance."""

import torch
from torch import Tensor, nn

from mnist_transformer.utils.checks import check_share


class ClassEmbedding(nn.Module):
    """One learned vector per class, and one for no class: the null class ``num_classes``.

    Training replaces a class by the null class with probability ``drop``, so that one model learns
    both the conditional and the unconditional distribution (arXiv 2207.12598).
    """

    def __init__(self, num_classes: int, dim: int, drop: float, std: float = 0.02) -> None:
        super().__init__()
        check_share("class_drop", drop)
        self.table = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.table.weight, std=std)
        self.null_class, self.drop = num_classes, drop

    def forward(self, cond_B: Tensor) -> Tensor:
        return self.table(self.with_drops(cond_B))

    def with_drops(self, cond_B: Tensor) -> Tensor:
        """The classes (B,); in training some are replaced by the null class."""
        if self.training and self.drop:
            # Drawn on the CPU, so that one seed gives the same drops on every device.
            dropped = (torch.rand(cond_B.shape) < self.drop).to(cond_B.device)
            cond_B = torch.where(dropped, self.null_class, cond_B)
        return cond_B


def with_null(cond_B: Tensor, null_class: int, guidance: float) -> Tensor:
    """The batch to evaluate for ``guide``: (B,), or (2B,) with the null class appended."""
    if guidance == 1:
        return cond_B
    return torch.cat([cond_B, torch.full_like(cond_B, null_class)])


def ramp(guidance: float, step: int, num_steps: int) -> float:
    """Guidance that grows from near 1 to its full scale at the last step; constant up to 1."""
    return guidance if guidance <= 1 else 1 + (guidance - 1) * (step + 1) / num_steps


def guide(output: Tensor, guidance: float) -> Tensor:
    """null + guidance * (conditional - null), of outputs for ``with_null``'s batch."""
    if guidance == 1:
        return output
    conditional, null = output.chunk(2)
    return null + guidance * (conditional - null)


def guidance_free(own: Tensor, null: Tensor, scale: float) -> Tensor:
    """null + (own - null) / scale: outputs to fit to the data so that ``own`` ends up guided.

    The result learns the conditional output, so ``own`` becomes null + scale * (conditional -
    null) and drawing needs one pass. Guidance-free training (arXiv 2501.15420) with its beta
    fixed at 1 / scale. ``null`` is held fixed: it learns from images whose condition is dropped.
    """
    return null.detach().lerp(own, 1 / scale)
