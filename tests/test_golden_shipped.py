"""Golden figures of the shipped weights: a refactor leaves losses and drawn bytes as they are.

``python tests/test_golden_shipped.py NAME ...`` records these models. Losses hold on every machine.
Bytes hold where float32 arithmetic is the same to the last bit as where they were recorded, which
``arithmetic`` tells: each kind of machine has its own.
"""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mnist_transformer.data import load_dataset
from mnist_transformer.models import checkpoint, loading

GOLDEN = Path(__file__).with_name("golden_shipped.json")
DRAWN = {
    "mnist-pixel-3.5m": 1,
    "mnist-scan": 10,
    "mnist-scan-tiny": 10,
    "mnist-patch": 10,
    "mnist-prompt-scratch": 3,
    "mnist-var": 10,
    "mnist-vq-raster": 10,
    "mnist-mar": 4,
    "mnist-ddpm": 4,
    "mnist-flash": 4,
    "cifar10-patch": 2,
    "cifar10-ddpm": 2,
}
IMAGES = [4, 985, 1627, 2491]  # of MNIST's training images
MODELS = (*DRAWN, "mnist-vqvae", "mnist-cnn", "cifar10-cnn", "mnist-prompt-smollm2")


def digest(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in tensors)).hexdigest()


def arithmetic() -> str:
    """A digest of products, convolutions and exponentials: the same where kernels round alike."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows, inner, columns in ((1, 256, 1024), (10, 96, 384), (40, 1024, 256), (490, 64, 64)):
        x = torch.randn(rows, inner, generator=generator)
        y = torch.randn(inner, columns, generator=generator)
        found += [x @ y, (x @ y).softmax(-1), (x[0] @ y).exp()]
    image = torch.randn(2, 8, 28, 28, generator=generator)
    kernel = torch.randn(16, 8, 3, 3, generator=generator)
    found.append(torch.nn.functional.conv2d(image, kernel))
    return digest(*found)


@torch.inference_mode()
def measure(name: str) -> dict:
    model = checkpoint.load(loading.find_weights(name))
    real = load_dataset("mnist").train
    images, cond = real.images[IMAGES], real.labels[IMAGES]
    if name.startswith("cifar10"):  # of which no image is at hand everywhere
        shape, generator = (4, *model.image_shape), torch.Generator().manual_seed(0)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if name == "mnist-prompt-smollm2":
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 9, 576, generator=generator)
        cond = torch.tensor([[3, 10], [7, 2], [10, -100], [0, 10]])
    torch.manual_seed(0)
    found = {"losses": [round(x, 6) for x in model.loss(images, cond).tolist()]}
    if name in DRAWN:
        labels = range(DRAWN[name])
        found["drawn"] = digest(model.sample(list(labels), seeds=labels))
    elif name == "mnist-vqvae":
        found["drawn"] = digest(model.reconstruct(images))
    elif name == "mnist-prompt-smollm2":
        found["drawn"] = str(model.read(images))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_drawn_bytes(name):
    torch.set_num_threads(1)
    golden, found = json.loads(GOLDEN.read_text())[name], measure(name)
    assert found["losses"] == pytest.approx(golden["losses"], rel=5e-4)
    drawn = golden.get("drawn", {})
    if (machine := arithmetic()) in drawn:
        assert found["drawn"] == drawn[machine]


def record(names: list[str]) -> None:
    """Record models; bytes of other machines stay where the losses are those of before."""
    torch.set_num_threads(1)
    golden = json.loads(GOLDEN.read_text())
    for name in names:
        found, before = measure(name), golden.get(name, {"losses": []})
        same = found["losses"] == pytest.approx(before["losses"], rel=5e-4)
        if "drawn" in found:
            kept = before.get("drawn", {}) if same else {}
            found["drawn"] = kept | {arithmetic(): found["drawn"]}
        golden[name] = found
    GOLDEN.write_text(json.dumps({name: golden[name] for name in MODELS}, indent=1) + "\n")


if __name__ == "__main__":
    record(sys.argv[1:] or list(MODELS))
