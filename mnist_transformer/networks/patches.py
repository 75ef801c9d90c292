"""Images cut into square patches, and put together again.

Shapes: B images, C channels, E the edge of an image, s of a patch, P = (E / s)^2 patches in raster
order, I = C * s * s pixels of a patch.
"""

import math

from torch import Tensor
from torch.nn import functional as F


def cut(images: Tensor, patch_size: int) -> Tensor:
    """Patches (B, P, I) of floating-point images (B, C, E, E)."""
    return F.unfold(images, patch_size, stride=patch_size).mT


def join(patches_BPI: Tensor, patch_size: int) -> Tensor:
    """Undo ``cut``, for any number of channels."""
    edge = patch_size * math.isqrt(patches_BPI.shape[1])
    return F.fold(patches_BPI.mT, (edge, edge), patch_size, stride=patch_size)
