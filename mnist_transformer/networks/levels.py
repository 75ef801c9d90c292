"""Pixel levels: as features that a network reads, and as a distribution that it predicts.

Shapes: E features, K logistics, V levels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH_OCTAVES = 3  # for photographs, where finer octaves encode noise
LEAST_LOG_SCALE = -9.0  # a thirtieth of a level of 256


def features(num_levels: int, background: int | None) -> Tensor:
    """Features (V + 1, E) of each level; those of row V, outside the canvas, are zero.

    They are flags (inside the canvas, not the background), the level, and its sines and cosines at
    octaves up to the Nyquist frequency: neighbouring levels are alike, yet none is confused with
    another. Without a background, only the first octaves are used.
    """
    level = torch.arange(num_levels).double()[:, None]
    num_octaves, ink = int(math.log2(num_levels)), []
    if background is None:
        num_octaves = min(num_octaves, SMOOTH_OCTAVES)
    else:
        ink = [(level != background).double()]
    angle = 2 * math.pi * level * 2 ** torch.arange(num_octaves) / num_levels
    sines = angle[:, : math.ceil(math.log2(num_levels)) - 1].sin()  # zero at the Nyquist frequency
    columns = [torch.ones_like(level), *ink, level / (num_levels - 1), angle.cos(), sines]
    # V columns suffice to tell V levels apart.
    return F.pad(torch.cat(columns, 1)[:, :num_levels], (0, 0, 0, 1)).float()


def log_prob(parameters: Tensor, predicted: Tensor, level: Tensor, num_levels: int) -> Tensor:
    """Log-probability (...) of levels int64 (...) by a mixture of logistics, float32.

    PixelCNN++, arXiv 1701.05517, section 2.1: a level takes the mass from half a level below
    to half a level above it; the first and the last level also take the tails.

    Args:
        parameters: (..., 3 * K), K logits; K means, as distances from ``predicted`` in scales; K
            logarithms of scales, in units of the range of levels.
        predicted: (...), in levels.
    """
    logits, means, log_scales = parameters.float().chunk(3, -1)
    slope = (-log_scales.clamp(min=LEAST_LOG_SCALE)).exp() / (num_levels - 1)  # a level in scales
    below = (level - 0.5 - predicted)[..., None] * slope - means
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), without cancellation.
    up_to, beyond = F.logsigmoid(below + slope), F.logsigmoid(-below)
    within = up_to + beyond + (-torch.expm1(-slope)).log()
    is_first, is_last = (level == 0)[..., None], (level == num_levels - 1)[..., None]
    mass = torch.where(is_first, up_to, torch.where(is_last, beyond, within))
    return (logits.log_softmax(-1) + mass).logsumexp(-1)
