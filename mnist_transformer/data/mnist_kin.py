"""Three data sets modelled on MNIST, also 28 x 28, from their official files alone."""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnist_transformer.data import idx
from mnist_transformer.data.dataset import Dataset, Split, hold_out
from mnist_transformer.data.download import obtain
from mnist_transformer.data.mnist import SPEC
from mnist_transformer.data.spec import DataSpec


@dataclass(frozen=True)
class Kin:
    """A data set of four IDX files named like MNIST's, or of EMNIST's archive of transposed images.

    ``hashes``: the md5 of each file to download; all its mirrors have the same files.
    """

    spec: DataSpec
    mirrors: tuple[str, ...]
    hashes: dict[str, str]

    def load(self, folder: Path | None = None) -> Dataset:
        """The last 5,000 training images are for validation; errors as ``load_dataset``."""
        of = self.mirrors, self.spec.name
        files = {name: obtain(folder, name, md5, *of) for name, md5 in self.hashes.items()}
        archive = files.get(EMNIST)

        def values(name: str, *shape: int) -> NDArray[np.uint8]:
            return idx.read(zipfile.Path(archive, name) if archive else files[name], shape)

        splits = []
        for part, count in EMNIST_PARTS if archive else MNIST_PARTS:
            images = values(f"{part}-images-idx3-ubyte.gz", count, 28, 28)[:, None]
            labels = values(f"{part}-labels-idx1-ubyte.gz", count)
            splits.append(Split.of(images.swapaxes(2, 3) if archive else images, labels))
        return hold_out(splits[0], splits[1], self.spec)


# fmt: off
MNIST_PARTS = ("train", 60_000), ("t10k", 10_000)
EMNIST = "gzip.zip"
EMNIST_PARTS = ("gzip/emnist-digits-train", 240_000), ("gzip/emnist-digits-test", 40_000)
FASHION = Kin(
    replace(SPEC, name="fashion-mnist", judge="fashion-cnn", licence="MIT",
            source="Zalando Research (Han Xiao, Kashif Rasul, Roland Vollgraf)",
            class_names=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                         "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")),
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
     "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"),
    {"train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
     "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
     "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
     "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310"},
)
KMNIST = Kin(
    replace(SPEC, name="kmnist", judge=None, licence="CC BY-SA 4.0",
            source="KMNIST Dataset (created by CODH), adapted from Kuzushiji Dataset "
                   "(created by NIJL and others), doi:10.20676/00000341",
            class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    {"train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
     "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
     "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
     "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134"},
)
EMNIST_DIGITS = Kin(
    replace(SPEC, name="emnist-digits", judge=None, licence="unknown",
            source="Gregory Cohen, Saeed Afshar, Jonathan Tapson and André van Schaik, of NIST "
                   "Special Database 19"),
    ("https://biometrics.nist.gov/cs_links/EMNIST/",
     "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/"),
    {EMNIST: "58c8d27c78d21e728a6bc7b3cc06412e"},
)
# fmt: on
