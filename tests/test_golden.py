"""Golden losses: a change that claims to change nothing leaves these figures as they are."""

from dataclasses import replace

import pytest
import torch
from test_contract import TINY

from mnist_transformer import optim
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.recipes import RECIPES

GOLDEN = {
    "patch": [184.808212, 182.701797, 180.59404, 178.076172, 175.221481],
    "classifier": [1.079583, 1.053057, 1.053973, 1.087447, 1.067014],
}


@pytest.mark.parametrize("family", GOLDEN)
def test_losses_of_the_first_steps(family):
    """Mean losses of five steps of training on a fixed batch, from a fixed seed."""
    config = (
        ClassifierConfig(image_size=8, num_classes=3, width=4)
        if family == "classifier"
        else TINY[family]
    )
    recipe = replace(RECIPES["mnist-patch"], model=config)
    torch.manual_seed(0)
    model = config.build().train()
    images = torch.randint(0, 16, (12, 1, 8, 8), dtype=torch.uint8)
    images *= torch.randint(0, 2, images.shape, dtype=torch.uint8)
    labels = torch.arange(12) % 3
    optimizers = optim.build_optimizers(model, recipe)
    losses = []
    for step in range(5):
        torch.manual_seed(step)
        loss = model.loss(images, labels).mean()
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses == pytest.approx(GOLDEN[family], rel=1e-4)
