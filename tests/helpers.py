"""What several test files share: tiny models, tiny data, and ways to look at both."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_transformer.data import Dataset, DataSpec, Split
from mnist_transformer.data.mnist import SCANS
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.data.scan_file import Scans
from mnist_transformer.models import checkpoint
from mnist_transformer.models.ddpm import DDPMConfig
from mnist_transformer.models.flash import FlashConfig
from mnist_transformer.models.mar import MARConfig
from mnist_transformer.models.patch.model import PatchConfig
from mnist_transformer.models.pixel import PixelConfig
from mnist_transformer.models.prompted import PromptedConfig
from mnist_transformer.models.scan import ScanConfig
from mnist_transformer.models.var import VarConfig
from mnist_transformer.models.vqvae import VQVAEConfig
from mnist_transformer.networks.transformer import Transformer
from mnist_transformer.recipes import Recipe

# Code for a process that is to print its greatest memory in kB. ``ru_maxrss`` counts the memory
# of the process that started it as well.
PRINT_PEAK = (
    "lines = open('/proc/self/status').readlines()\n"
    "print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))\n"
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells")


def make_spec(
    size: int = 28,
    classes: int = 10,
    levels: int = 256,
    channels: int = 1,
    background: int | None = 0,
) -> DataSpec:
    names = tuple(map(str, range(classes)))
    shape = (channels, size, size)
    return replace(MNIST, shape=shape, class_names=names, num_levels=levels, background=background)


# --- 28 x 28 pixels, as the verbs want them ---

TINY_PATCH = PatchConfig(
    MNIST,
    dim=16,
    depth=1,
    num_heads=2,
    mlp_dim=16,
    gate_width=16,
    head_width=16,
    head_depth=1,
    head_mlp_dim=16,
)
TINY_PROMPTED = PromptedConfig(
    MNIST, replace(TINY_PATCH, data=SCANS, patch_size=8, positions="learned_rope")
)
END = 10  # the symbol of its answer after which no digit comes


def make_digits(num_images: int = 40) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(num_images, 1, 28, 28, dtype=torch.uint8)
    images[..., 10:14, 8:20] = torch.randint(
        0, 256, (num_images, 1, 4, 12), dtype=torch.uint8, generator=generator
    )
    split = Split(images, torch.arange(num_images) % 10)
    return Dataset(split, split, split, MNIST)


# --- every family that draws, 8 x 8 ---

BACKBONE = {"dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 16}
SMALL = {"data": make_spec(8, 3), **BACKBONE}
FEW_LEVELS = make_spec(8, 3, levels=16)
TINY = {
    "patch": replace(TINY_PATCH, data=FEW_LEVELS, **BACKBONE, margin=2),
    "pixel": PixelConfig(FEW_LEVELS, **BACKBONE),
    "var": VarConfig(
        make_spec(8, 3),
        tokenizer=VQVAEConfig(
            make_spec(8, 3), width=8, depth=1, scales=(1, 2), codebook_size=16, code_dim=4
        ),
        **BACKBONE,
    ),
    "mar": MARConfig(
        **SMALL,
        margin=2,
        head_width=16,
        head_depth=1,
        head_mlp_dim=16,
        head_steps=3,
        num_draws=2,
        num_steps=4,
    ),
    "ddpm": DDPMConfig(**SMALL, num_steps=4, bound_samples=4),
    "flash": FlashConfig(**SMALL, patch_size=4, num_links=3),
}
# 28 x 28: MNIST's program makes no other images. The scans are those of ``make_scans``.
TINY["scan"] = ScanConfig(
    make_spec(28, 3),
    replace(
        TINY["patch"],
        data=replace(SCANS, shape=(1, 24, 24), class_names=("0", "1", "2")),
        patch_size=8,
    ),
)
TINY["prompted"] = PromptedConfig(
    TINY["scan"].data, replace(TINY["scan"].scan, positions="learned_rope"), answer_weight=2.0
)


def make_scans() -> Scans:
    """Strokes of six directions as scans of sides 20 to 24."""
    sides, bits = torch.tensor([20, 21, 22, 23, 24, 24]), []
    for number, side in enumerate(sides.tolist()):
        row, column = np.indices((side, side)) - (side - 1) / 2
        angle = number * np.pi / 6
        stroke = abs(row * np.cos(angle) + column * np.sin(angle)) < 2 + number / 4
        bits.append(np.packbits(stroke))
    none = torch.zeros(0, 1, 28, 28, dtype=torch.uint8)
    return Scans(sides, torch.arange(6) % 3, none, np.concatenate(bits))


def moved(config):
    """A model with all its weights away from where they start, where outputs are zero."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def make_teacher(data):
    """The model of diffusion that a one-step model of this data set learns from."""
    return moved(replace(TINY["ddpm"], data=data)).eval().requires_grad_(False)


def random_images(number=6, size=8, levels=256):
    return torch.randint(0, levels, (number, 1, size, size), dtype=torch.uint8)


# --- spaces small enough to add up ---

PATCHES = replace(
    TINY["patch"], data=make_spec(2, 2, levels=3), patch_size=1, head_depth=2, margin=1
)
TWO_LEVELS = make_spec(4, 2, levels=2)
SPACES = {
    "patches of one pixel": PATCHES,
    "one patch with background 1": replace(
        PATCHES, data=make_spec(2, 2, levels=3, background=1), patch_size=2
    ),
    "patches of two levels": replace(PATCHES, data=TWO_LEVELS, patch_size=2, margin=2),
    "patches without background": replace(
        PATCHES, data=replace(TWO_LEVELS, shape=(1, 2, 4), background=None), patch_size=2
    ),
    "two coloured patches": replace(PATCHES, data=replace(PATCHES.data, shape=(3, 2, 1))),
    "a coloured patch without background": replace(
        PATCHES, data=make_spec(2, 2, levels=2, channels=3, background=None), patch_size=2
    ),
    "coloured patches of logistics": replace(
        PATCHES,
        data=replace(PATCHES.data, shape=(2, 2, 2), background=None),
        num_logistics=2,
    ),
    "one patch of four pixels": replace(PATCHES, patch_size=2),
    "four pixels": PixelConfig(make_spec(2, 2, levels=3), **BACKBONE),
    "two coloured pixels": PixelConfig(replace(PATCHES.data, shape=(3, 2, 1)), **BACKBONE),
    "four coloured pixels": PixelConfig(make_spec(2, 2, levels=2, channels=3), **BACKBONE),
}


def random_model(config):
    """Weights far from where they start, so that every part has its say."""
    torch.manual_seed(1)
    model = config.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5)
    return model


def all_images(config) -> torch.Tensor:
    """Every image of a space; read as digits in base ``num_levels`` they count up from 0."""
    values = product(range(config.data.num_levels), repeat=math.prod(config.image_shape))
    return torch.tensor(list(values), dtype=torch.uint8).view(-1, *config.image_shape)


# --- runs ---


def make_bars(num_train=20):
    """Three classes of blurred bars, in four grey levels."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(num_train + 12) % 3
    images = torch.randint(0, 2, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, :, 2 * label + 1] += 2
    parts = [slice(num_train), slice(num_train, num_train + 6), slice(num_train + 6, None)]
    splits = (Split(images[part], labels[part]) for part in parts)
    return Dataset(*splits, make_spec(8, 3, levels=4))


BARS = make_bars()
RECIPE = Recipe(
    "tiny",
    replace(
        TINY_PATCH,
        data=make_spec(8, 3, levels=4),
        mlp_dim=32,
        head_mlp_dim=32,
        margin=2,
    ),
    dataset="none",
    batch_size=8,
    epochs=2,
    ema=0.2,
    warmup=0.1,
)
BRIGHT_BARS = replace(
    BARS.map(lambda name, x: Split(x.images * 80, x.labels)), spec=make_spec(8, 3)
)
VQVAE_RECIPE = Recipe(
    "tiny",
    VQVAEConfig(make_spec(8, 3), width=8, depth=1, scales=(1, 2), codebook_size=6, code_dim=4),
    dataset="none",
    batch_size=8,
    epochs=2,
    ema=0.2,
    adamw_lr=1e-3,
)


def weights(path):
    return checkpoint.load(path).state_dict()


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Killed(Exception):
    """Stands for the end of the process: nothing of the run is done after it."""


def kill_at(monkeypatch, step):
    """Save after every step and die in the middle of a step."""
    from mnist_transformer.training import loop as training  # accelerate takes its time to import

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    backward = training._Run.backward

    def dying(self):
        if self.state.step == step:
            raise Killed
        return backward(self)

    monkeypatch.setattr(training._Run, "backward", dying)


# --- the backbone ---

NUM_TOKENS, DIM, NUM_HEADS = 12, 32, 2


def make_transformer(positions: str = "learned", depth: int = 2, dropout: float = 0.0):
    torch.manual_seed(0)
    model = Transformer(
        dim=DIM,
        depth=depth,
        num_heads=NUM_HEADS,
        mlp_dim=48,
        num_tokens=NUM_TOKENS,
        grid_width=4,
        positions=positions,
        dropout=dropout,
    )
    for block in model.blocks:  # they start at zero, where a test would see nothing
        torch.nn.init.normal_(block.attention.output.weight, std=0.1)
        torch.nn.init.normal_(block.mlp.down.weight, std=0.1)
    return model.eval()


# --- downloads ---


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The URL of a server on this machine that has the files of a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
