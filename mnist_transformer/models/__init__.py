"""The model families, by the name that checkpoints carry."""

from mnist_transformer.models.classifier import Classifier, ClassifierConfig
from mnist_transformer.models.patch import Patch, PatchConfig

FAMILIES = {
    "patch": (PatchConfig, Patch),
    "classifier": (ClassifierConfig, Classifier),
}
