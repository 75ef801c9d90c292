"""Everything this project ever trained, by name: one aligned table of frozen recipes."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mnist_transformer.data.cifar10 import SPEC as CIFAR10
from mnist_transformer.data.mnist import SCANS
from mnist_transformer.data.mnist import SPEC as MNIST
from mnist_transformer.data.mnist_kin import FASHION
from mnist_transformer.data.spec import DataSpec
from mnist_transformer.models.classifier import ClassifierConfig
from mnist_transformer.models.ddpm import DDPMConfig
from mnist_transformer.models.flash import FlashConfig
from mnist_transformer.models.mar import MARConfig
from mnist_transformer.models.patch.model import PatchConfig
from mnist_transformer.models.pixel import PixelConfig
from mnist_transformer.models.prompted import PromptedConfig
from mnist_transformer.models.reader import ReaderConfig
from mnist_transformer.models.scan import ScanConfig
from mnist_transformer.models.var import VarConfig
from mnist_transformer.models.vqvae import STRIDE, VQVAEConfig
from mnist_transformer.utils.checks import check_name


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained. Exactly one of max_seconds and epochs is set."""

    name: str
    model: Any  # the family's frozen config, or a function that makes it of a DataSpec
    dataset: str = "mnist"
    batch_size: int = 64  # images per step over all processes
    muon_lr: float = 0.02  # peak learning rate of the hidden matrices
    adamw_lr: float = 2e-3  # and of all the rest
    # Each hidden matrix is orthogonalised and updated once in this many steps, at this many times
    # its rate. At 1, as published, orthogonalising takes a third of a step's time on a CPU.
    muon_interval: int = 4
    max_seconds: float | None = None  # length of the run; progress runs from 0 to 1 over it
    epochs: float | None = None
    warmup: float = 0.02  # fraction of the run over which the rates rise linearly at its start
    decay: float = 0.5  # and fall to zero at its end
    ema: float = 0.0  # horizon of the weights' average, as a fraction of the steps so far; 0: none
    clip: float = 1.0  # largest norm of the gradient
    compile: bool = False  # faster, by ``torch.compile``; draws other random numbers
    tokenizer: str | None = None  # its recipe or path, for a model over codes
    about: str = ""

    def __post_init__(self) -> None:
        if (self.max_seconds is None) == (self.epochs is None):
            both = f"max_seconds is {self.max_seconds} and epochs is {self.epochs}"
            raise ValueError(f"{both} for recipe {self.name}, expected exactly one of them")
        for name in ("max_seconds", "epochs", "batch_size", "adamw_lr", "muon_lr", "muon_interval"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1e8:  # three years, in seconds
                raise ValueError(f"{name} is {value}, expected a number above 0 and at most 1e8")


# The head is half as wide as a grey model's: it draws one bit per pixel.
_scan = PatchConfig(
    SCANS,
    patch_size=8,
    margin=8,
    head_width=48,
    head_depth=2,
    head_mlp_dim=96,
    built_in_guidance=1.4,
)
_scan_tiny = replace(_scan, dim=96, num_heads=3, mlp_dim=384, gate_width=64)
_vqvae = VQVAEConfig(MNIST)
_vqvae_plain = VQVAEConfig(MNIST, scales=(7,))
_cifar_patch = PatchConfig(
    CIFAR10, dim=256, mlp_dim=1024, margin=3, num_logistics=5, positions="learned_axial_rope"
)
_cifar_ddpm = DDPMConfig(
    CIFAR10, depth=8, time_mean=0.0, time_sd=1.0, num_steps=30, built_in_guidance=1.5
)
_cifar_cnn = ClassifierConfig(
    CIFAR10, width=32, max_degrees=0.0, max_scale=0.0, max_shear=0.0, mirror=True, residual=True
)

# fmt: off
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (
    Recipe("mnist-scan", ScanConfig(MNIST, _scan, turned=0.4),
           batch_size=16, max_seconds=150 * 60, compile=True,
           about="scans that MNIST's program turns into images"),
    Recipe("mnist-scan-tiny", ScanConfig(MNIST, _scan_tiny),
           batch_size=16, max_seconds=75 * 60, compile=True,
           about="scans too, with a third of the parameters"),
    Recipe("mnist-scan-speedrun", ScanConfig(MNIST, replace(_scan_tiny, built_in_guidance=1.0)),
           batch_size=16, max_seconds=2 * 60,
           about="scans too, without built-in guidance, to reach a figure soon"),
    Recipe("mnist-patch", PatchConfig(MNIST, patch_size=2, built_in_guidance=1.7),
           batch_size=16, max_seconds=7600, compile=True,
           about="patch by patch; knows nothing of MNIST"),
    # The sizes of an earlier project. Small batches make the most of few images.
    Recipe("mnist-pixel-3.5m", PixelConfig(MNIST), batch_size=16, epochs=1,
           about="one step per pixel; 3,480,576 parameters, as an earlier project had"),
    Recipe("mnist-pixel-6.9m",
           PixelConfig(MNIST, dim=300, depth=6, num_heads=6, mlp_dim=1200,
                       positions="learned_rope"),
           batch_size=16, epochs=1,
           about="one step per pixel, with 6,872,356 parameters, as an earlier project had"),
    Recipe("mnist-pixel-57m",
           PixelConfig(MNIST, dim=768, depth=8, num_heads=12, mlp_dim=3072, dropout=0.1),
           batch_size=32, adamw_lr=1e-3, epochs=15, compile=True,
           about="the same with 57,627,136 parameters; to be trained on a GPU"),
    Recipe("mnist-vqvae", _vqvae, batch_size=128, adamw_lr=1e-3, max_seconds=15 * 60,
           about="70 codes per image, of 512 per scale, at scales 1, 2, 4, 7: for mnist-var"),
    Recipe("mnist-vqvae-plain", _vqvae_plain, batch_size=128, adamw_lr=1e-3, max_seconds=15 * 60,
           about="49 codes per image, of 512, at one scale: for mnist-vq-raster"),
    Recipe("mnist-var",
           VarConfig(MNIST, tokenizer=_vqvae, dropout=0.1, correction=0.15, built_in_guidance=1.2),
           tokenizer="mnist-vqvae", max_seconds=75 * 60, compile=True,
           about="next-scale prediction over the codes of mnist-vqvae"),
    Recipe("mnist-vq-raster",
           VarConfig(MNIST, tokenizer=_vqvae_plain, order="raster", dropout=0.1,
                     built_in_guidance=1.2),
           tokenizer="mnist-vqvae-plain", max_seconds=75 * 60, compile=True,
           about="codes of a VQ-VAE in raster order: the baseline of mnist-var"),
    Recipe("mnist-mar", MARConfig(MNIST, patch_size=7, built_in_guidance=1.25),
           adamw_lr=1e-3, max_seconds=90 * 60, ema=0.1, compile=True,
           about="masked patches in a random order, with a diffusion head"),
    Recipe("mnist-ddpm", DDPMConfig(MNIST, patch_size=7, built_in_guidance=1.25),
           adamw_lr=1e-3, max_seconds=60 * 60, ema=0.1, compile=True,
           about="rectified flow over noisy patches"),
    Recipe("mnist-ddpm-epsilon",
           DDPMConfig(MNIST, schedule="linear", prediction="epsilon", loss_space="epsilon",
                      time_mean=None, num_steps=50),
           adamw_lr=1e-3, max_seconds=100 * 60, ema=0.1, compile=True,
           about="the objective of the DDPM paper: its noise, its betas"),
    Recipe("mnist-flash", FlashConfig(MNIST),
           batch_size=128, adamw_lr=1e-3, max_seconds=150 * 60, compile=True, ema=0.1,
           about="one pass from noise to a digit, learned from mnist-ddpm"),
    Recipe("mnist-prompt-scratch",
           PromptedConfig(MNIST, replace(_scan, positions="learned_rope", dropout=0.1)),
           dataset="mnist-prompts", batch_size=32, max_seconds=60 * 60, compile=True,
           about="from a sentence to a number: prompt, answer and digit in one sequence"),
    Recipe("mnist-prompt-smollm2", ReaderConfig(MNIST), dataset="smollm2-states",
           batch_size=128, adamw_lr=1e-3, max_seconds=25 * 60,
           about="reads what SmolLM2 makes of a sentence, for mnist-scan to draw"),
    Recipe("mnist-cnn", ClassifierConfig(MNIST), batch_size=128, adamw_lr=3e-3, epochs=10,
           decay=0.8, about="the classifier that judges drawn digits"),
    Recipe("fashion-cnn", replace(_cifar_cnn, data=FASHION.spec, width=16),
           dataset="fashion-mnist", batch_size=128, adamw_lr=3e-3, max_seconds=20 * 60, decay=0.8,
           about="the classifier that judges drawn clothes"),
    Recipe("cifar10-cnn", _cifar_cnn,
           dataset="cifar10", batch_size=128, adamw_lr=3e-3, max_seconds=50 * 60, decay=0.8,
           about="the classifier that judges drawn photographs"),
    Recipe("cifar10-patch", _cifar_patch,
           dataset="cifar10", batch_size=16, max_seconds=120 * 60, compile=True,
           about="photographs by patches of 4x4 pixels, value by value inside a patch"),
    Recipe("cifar10-pixel", PixelConfig(CIFAR10), dataset="cifar10", batch_size=16,
           max_seconds=150 * 60, about="photographs value by value: the baseline of cifar10-patch"),
    Recipe("cifar10-ddpm", _cifar_ddpm,
           dataset="cifar10", adamw_lr=1e-3, max_seconds=150 * 60, ema=0.1, compile=True,
           about="photographs by rectified flow over noisy patches of 4x4 pixels"),
    # For a real run, on a GPU.
    Recipe("cifar10-patch-gpu",
           replace(_cifar_patch, patch_size=2, dim=512, depth=12, num_heads=8, mlp_dim=2048,
                   head_width=128, head_mlp_dim=256, num_logistics=10, dropout=0.1),
           dataset="cifar10", batch_size=64, muon_lr=0.01, adamw_lr=1e-3, muon_interval=1,
           epochs=60, ema=0.1, compile=True,
           about="2x2 patches and 40M parameters: 1.9e17 FLOP, to be trained on a GPU in an hour"),
    Recipe("cifar10-ddpm-gpu",
           replace(_cifar_ddpm, patch_size=2, dim=512, depth=12, num_heads=8, mlp_dim=2048,
                   dropout=0.1),
           dataset="cifar10", batch_size=256, adamw_lr=1e-3, muon_interval=1, epochs=400, ema=0.1,
           compile=True,
           about="the same with 2x2 patches and 58M parameters: 1.5e18 FLOP, three hours of a GPU"),
)}
# fmt: on


def _vqvae_of(data: DataSpec) -> VQVAEConfig:
    """Scales of 1, 2, 4 and so on up to all cells."""
    grid = data.shape[1] // STRIDE
    return VQVAEConfig(data, scales=(*(2**i for i in range(8) if 2**i < grid), grid))


# Recipes whose shape comes from the data: `train NAME --data FOLDER`.
_any = partial(Recipe, dataset="folder", max_seconds=30 * 60)
# fmt: off
GENERIC: dict[str, Recipe] = {recipe.name: recipe for recipe in (
    # Without a background, values are like their neighbours, and so are levels.
    _any("patch",
         lambda data: PatchConfig(data, num_logistics=5 if data.background is None else None),
         batch_size=16, about="patch by patch"),
    _any("pixel", PixelConfig, batch_size=16, about="value by value"),
    _any("ddpm", DDPMConfig, adamw_lr=1e-3, ema=0.1, about="rectified flow over noisy patches"),
    _any("mar", MARConfig, adamw_lr=1e-3, ema=0.1, about="masked patches in a random order"),
    _any("vqvae", _vqvae_of, batch_size=128, adamw_lr=1e-3, max_seconds=10 * 60,
         about="codes of an image at several scales: for var"),
    _any("var", lambda data: VarConfig(data, tokenizer=_vqvae_of(data), dropout=0.1),
         tokenizer="vqvae", about="next-scale prediction over the codes of vqvae"),
)}
# fmt: on


def find_recipe(name: str) -> Recipe:
    """The recipe of a name. Raises ValueError where there is none, with the nearest names."""
    every = RECIPES | GENERIC
    check_name("recipe", name, every)
    return every[name]
