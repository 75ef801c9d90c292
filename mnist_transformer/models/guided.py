"""Built-in guidance, shared by the families with a class embedding."""

from collections.abc import Callable, Sequence

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

    def fitted(
        self, own: Sequence[Tensor], null_of: Callable[[], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        """The outputs to fit to the images: ``guidance_free`` ones if guidance is built in.

        ``null_of`` makes the outputs without a class. It must run after ``own`` is computed:
        autocast caches each weight's first cast, and one made under no_grad has no gradient.
        """
        if self.built_in_guidance == 1:
            return own
        with evaluating(self), torch.no_grad():
            null = null_of()
        return [guidance_free(*x, self.built_in_guidance) for x in zip(own, null, strict=True)]
