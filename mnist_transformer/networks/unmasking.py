"""How many tokens a masked model knows after each step (MaskGIT, arXiv 2202.04200).

After a share u of the steps a share cos(pi u / 2) of the tokens is unknown: the cosine schedule.

Shapes: B images, P tokens.
"""

import math

import torch
from torch import Tensor


def unknown_share(u: Tensor) -> Tensor:
    return (u * (math.pi / 2)).cos()


def masks(num_images: int, num_tokens: int, least: float) -> Tensor:
    """Masks for training, bool (B, P) on the CPU, true where unknown: at least one token each.

    ``least`` is the smallest share that is masked, in [0, 1).
    """
    # Like the times of diffusion, the masked shares are evenly spread over a batch.
    u = (torch.randperm(num_images) + torch.rand(1)) / max(num_images, 1)
    share_B1 = (least + (1 - least) * unknown_share(u)).unsqueeze(1)
    rank_BP = torch.rand(num_images, num_tokens).argsort(1)
    return rank_BP < (share_B1 * num_tokens).ceil().clamp(1, num_tokens)


def known_counts(known_BP: Tensor, num_steps: int) -> list[Tensor]:
    """Numbers of known tokens before each step and at the end, (B,) each.

    ``known_BP`` is true for tokens known from the start. Each step makes at least one known,
    while any is unknown.
    """
    num_known_B, unknown_B = known_BP.sum(1), (~known_BP).sum(1)
    counts = []
    for step in range(num_steps + 1):
        share = unknown_share(torch.tensor(step / num_steps)).to(unknown_B.device)
        # 1e-4 covers rounding errors of whole numbers.
        drawn_B = unknown_B - (unknown_B * share + 1e-4).floor().long()
        at_least = unknown_B.clamp(max=step)
        at_most = torch.maximum(unknown_B - (num_steps - step), at_least)
        counts.append(num_known_B + drawn_B.clamp(at_least, at_most))
    return counts
