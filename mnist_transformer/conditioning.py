"""What a model is told of an image: its class or none, with guidance, and how it was turned."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClassEmbedding(nn.Module):
    """One learned vector a class, and one for no class at all, the null class ``num_classes``.

    In training a class is dropped to the null class with probability ``drop``, so that one model
    learns both the conditional and the unconditional distribution (arXiv 2207.12598).
    """

    def __init__(self, num_classes: int, dim: int, drop: float, std: float = 0.02) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise ValueError(f"class drop probability is {drop}, expected a number in [0, 1)")
        self.table = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.table.weight, std=std)
        self.null_class, self.drop = num_classes, drop

    def forward(self, cond_B: Tensor) -> Tensor:
        return self.table(self.with_drops(cond_B))

    def with_drops(self, cond_B: Tensor) -> Tensor:
        """The classes, in training some of them replaced by the null class."""
        if self.training and self.drop:
            # Drawn on the CPU, so that one seed gives the same drops on every device.
            dropped = (torch.rand(cond_B.shape) < self.drop).to(cond_B.device)
            cond_B = torch.where(dropped, self.null_class, cond_B)
        return cond_B


class Orientation(nn.Module):
    """Images turned into one of their eight orientations, and a learned vector that says which.

    Distribution augmentation (Jun et al., ICML 2020, "Distribution Augmentation for Generative
    Modeling"): as the model is told the orientation, it learns eight distributions, and the one
    of upright images, whose vector is zero, stays exact. A model that learns images by heart has
    eight times as many to learn; what holds in every orientation it learns sooner.

    Args:
        share: of the training images that are turned; the other seven are alike in number.
    """

    def __init__(self, dim: int, share: float) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"turned is {share}, expected a number in [0, 1]")
        self.vectors = nn.Parameter(torch.empty(7, dim).normal_(std=0.02))
        self.share = share

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Some of the images (B, C, E, E) turned, and the vectors (B, D) that say how."""
        turn_B = torch.randint(1, 8, (len(images),))  # on the CPU, as class drops are
        turn_B = turn_B * (torch.rand(len(images)) < self.share)
        turn_B = turn_B.to(images.device)
        return turn(images, turn_B), F.pad(self.vectors, (0, 0, 1, 0))[turn_B]


def turn(images: Tensor, turn_B: Tensor) -> Tensor:
    """Images (B, C, E, E) transposed, flipped upside down and mirrored, as turn's bits 1, 2, 4 say.

    Turn 0 leaves an image as it is.
    """
    moves = (lambda x: x.mT), (lambda x: x.flip(-2)), (lambda x: x.flip(-1))
    for bit, move in enumerate(moves):
        chosen_B = (turn_B >> bit & 1).bool()
        images = torch.where(chosen_B[:, None, None, None], move(images), images)
    return images


def with_null(cond_B: Tensor, null_class: int, guidance: float) -> Tensor:
    """The batch to evaluate for ``guide``: (B,), or (2B,) with the null class behind it."""
    if guidance == 1:
        return cond_B
    return torch.cat([cond_B, torch.full_like(cond_B, null_class)])


def ramp(guidance: float, step: int, num_steps: int) -> float:
    """Guidance that grows with the steps, from near 1 to its full scale at the last one.

    From 0 to 1, where it says how much the class counts, it is the same at every step.
    """
    return guidance if guidance <= 1 else 1 + (guidance - 1) * (step + 1) / num_steps


def guide(output: Tensor, guidance: float) -> Tensor:
    """null + guidance * (conditional - null), of outputs for ``with_null``'s batch."""
    if guidance == 1:
        return output
    conditional, null = output.chunk(2)
    return null + guidance * (conditional - null)
