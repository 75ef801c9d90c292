"""The model families, by the name that checkpoints carry."""

from typing import Any

from mnist_transformer.models.classifier import Classifier, ClassifierConfig
from mnist_transformer.models.ddpm import DDPM, DDPMConfig
from mnist_transformer.models.flash import Flash, FlashConfig
from mnist_transformer.models.mar import MAR, MARConfig
from mnist_transformer.models.patch.model import Patch, PatchConfig
from mnist_transformer.models.pixel import Pixel, PixelConfig
from mnist_transformer.models.prompted import Prompted, PromptedConfig
from mnist_transformer.models.reader import Reader, ReaderConfig
from mnist_transformer.models.scan import Scan, ScanConfig
from mnist_transformer.models.var import Var, VarConfig
from mnist_transformer.models.vqvae import VQVAE, VQVAEConfig

FAMILIES = {
    "patch": (PatchConfig, Patch),
    "scan": (ScanConfig, Scan),
    "pixel": (PixelConfig, Pixel),
    "vqvae": (VQVAEConfig, VQVAE),
    "var": (VarConfig, Var),
    "mar": (MARConfig, MAR),
    "ddpm": (DDPMConfig, DDPM),
    "flash": (FlashConfig, Flash),
    "prompted": (PromptedConfig, Prompted),
    "reader": (ReaderConfig, Reader),
    "classifier": (ClassifierConfig, Classifier),
}


def family_of(config: Any) -> str:
    """The key of a config's class in FAMILIES."""
    for family, (config_class, _) in FAMILIES.items():
        if type(config) is config_class:
            return family
    raise ValueError(f"{type(config).__name__} is in no family, expected {', '.join(FAMILIES)}")
