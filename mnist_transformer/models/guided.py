"""Built-in guidance, shared by the families with a class embedding."""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_transformer.models.base import GenerativeModel, evaluating
from mnist_transformer.models.config import BackboneConfig
from mnist_transformer.networks.conditioning import guidance_free


class GuidedModel(GenerativeModel):
    """A model whose config has ``built_in_guidance``."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.built_in_guidance = config.built_in_guidance

    def without_class(self, cond: Tensor) -> Tensor:
        """The conditions with the null class."""
        return torch.full_like(cond, self.num_classes)

    def fitted(self, own: Tensor, null_of: Callable[[], Tensor]) -> Tensor:
        """The output to fit to the images: a ``guidance_free`` one if guidance is built in.

        ``null_of`` makes the output without a class. It must run after ``own`` is computed:
        autocast caches each weight's first cast, and one made under no_grad has no gradient.
        """
        if self.built_in_guidance == 1:
            return own
        with evaluating(self), torch.no_grad():
            null = null_of()
        return guidance_free(own, null, self.built_in_guidance)
