"""Other libraries' models of the size of ``mnist-pixel-3.5m``, for ``tools.bench``: extra [bench].

All have random weights, which do not change how fast they draw. Two draw pixel by pixel, with
their key-value caches, and two by denoising. All denoising steps cost the same, so some are timed.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mnist_transformer.recipes import RECIPES
from tools.race import Draw, Subject

PACKAGES = ("transformers", "x_transformers", "diffusers")
NUM_TIMED = 10  # denoising steps


def check_installed() -> None:
    """Raises ValueError if one of the peers is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not found, expected the extra: "
            "pip install 'mnist-transformer[bench]' (or give --no-peers)"
        )


def peers(device: torch.device, config: Any = None) -> Iterator[Subject]:
    """Every peer, built when its turn comes.

    Args:
        config: sizes of the pixel model that they imitate; mnist-pixel-3.5m's by default.
    """
    config = config or RECIPES["mnist-pixel-3.5m"].model
    yield gpt2(device, config)
    yield x_transformers(device, config)
    yield from unet(device, config)


def gpt2(device: torch.device, config: Any) -> Subject:
    """GPT-2 of transformers and its ``generate``, over classes and levels in one vocabulary."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    num_pixels = config.image_size**2
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.data.num_levels + config.data.num_classes,
            n_positions=num_pixels + 1,
            n_embd=config.dim,
            n_layer=config.depth,
            n_head=config.num_heads,
            n_inner=config.mlp_dim,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    options = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=num_pixels, use_cache=True, pad_token_id=0
    )
    model = model.to(device).eval()

    def draw(num_images: int) -> Tensor:
        start = _class_tokens(num_images, config, device)
        pixels = model.generate(
            start, attention_mask=torch.ones_like(start), generation_config=options
        )
        assert pixels.shape[1] == 1 + num_pixels
        return pixels

    return _subject("transformers GPT-2", "generate with cache", model, draw)


def x_transformers(device: torch.device, config: Any) -> Subject:
    """The decoder and autoregressive wrapper of x-transformers."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    num_pixels = config.image_size**2
    layers = Decoder(
        dim=config.dim,
        depth=config.depth,
        heads=config.num_heads,
        attn_dim_head=config.dim // config.num_heads,
        ff_mult=config.mlp_dim / config.dim,
        attn_flash=True,
    )
    net = TransformerWrapper(
        num_tokens=config.data.num_levels + config.data.num_classes,
        max_seq_len=num_pixels + 1,
        attn_layers=layers,
    )
    model = AutoregressiveWrapper(net).to(device).eval()

    def draw(num_images: int) -> Tensor:
        start = _class_tokens(num_images, config, device)
        pixels = model.generate(
            start, num_pixels, filter_logits_fn=lambda logits: logits, cache_kv=True
        )
        assert pixels.shape[1] == num_pixels
        return pixels

    return _subject("x-transformers", "autoregressive wrapper with cache", model, draw)


def unet(device: torch.device, config: Any) -> Iterator[Subject]:
    """The convolutional UNet of diffusers, by DDPM (1,000 steps) and by DDIM (50)."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    model = UNet2DModel(
        sample_size=config.image_size,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(48, 96, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=config.data.num_classes,
    )
    model = model.to(device).eval()
    for name, scheduler, num_steps in (
        ("DDPM", DDPMScheduler(), 1000),
        ("DDIM", DDIMScheduler(), 50),
    ):
        scheduler.set_timesteps(num_steps)

        @torch.inference_mode()
        def draw(num_images: int, scheduler: DDPMScheduler | DDIMScheduler = scheduler) -> None:
            labels = torch.arange(num_images, device=device) % config.data.num_classes
            x = torch.randn(num_images, 1, config.image_size, config.image_size, device=device)
            for t in scheduler.timesteps[:NUM_TIMED]:
                noise = model(x, t, class_labels=labels).sample
                x = scheduler.step(noise, t, x).prev_sample

        setting = f"{name}, {NUM_TIMED} of {num_steps:,} steps timed"
        yield _subject("diffusers UNet", setting, model, draw, share=NUM_TIMED / num_steps)


def _subject(
    model_name: str, setting: str, model: nn.Module, draw: Draw, share: float = 1.0
) -> Subject:
    parameters = sum(p.numel() for p in model.parameters())
    return Subject(model_name, setting, parameters, draw, draw, share)


def _class_tokens(num_images: int, config: Any, device: torch.device) -> Tensor:
    """int64 (B, 1): classes come after the grey levels in the shared vocabulary."""
    classes = torch.arange(num_images, device=device) % config.data.num_classes
    return (config.data.num_levels + classes)[:, None]
