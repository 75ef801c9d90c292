"""Three data sets made after MNIST, 28 x 28 as it is, from their official files alone."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch

from mnist_transformer.data import idx
from mnist_transformer.data.dataset import NUM_VAL, Dataset, Split, hold_out
from mnist_transformer.data.download import fetch
from mnist_transformer.data.spec import DataSpec


@dataclass(frozen=True)
class Kin:
    """A data set of four IDX files: training images and labels, test images and labels.

    Args:
        hashes: the md5 of each file to download, by name: of the four, or of an archive of them.
        member: the name of a file, in the archive if there is one.
        parts: the names of the training set and the test set in ``member``.
        transposed: whether the files have columns where others have rows.
    """

    spec: DataSpec
    mirrors: tuple[str, ...]
    hashes: dict[str, str]
    member: str = "{}-{}-ubyte.gz"
    parts: tuple[str, str] = ("train", "t10k")
    counts: tuple[int, int] = (60_000, 10_000)
    transposed: bool = False

    def load(self, folder: Path | None = None) -> Dataset:
        """The last 5,000 training images are for validation.

        Raises:
            ValueError: a file is missing, damaged or another one.
            OSError: no mirror could be reached.
        """
        files = {name: self._find(folder, name) for name in self.hashes}
        splits = []
        for part, count in zip(self.parts, self.counts, strict=True):
            values = []
            for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
                name = self.member.format(part, kind)
                path = files.get(name) or zipfile.Path(next(iter(files.values())), name)
                values.append(idx.read(path, shape))
            images = torch.from_numpy(values[0]).unsqueeze(1)
            images = images.mT.contiguous() if self.transposed else images
            splits.append(Split(images, torch.from_numpy(values[1].astype(np.int64))))
        train, test = splits
        return hold_out(train, test, self.spec, NUM_VAL)

    def _find(self, folder: Path | None, name: str) -> Path:
        """A verified file, of the folder or downloaded."""
        if folder is None:
            return fetch(name, self.hashes[name], self.mirrors, self.spec.name)
        path, where = folder / name, f"get it from {' or '.join(self.mirrors)}"
        if not path.is_file():
            raise ValueError(f"{folder} holds no {name}; {where}, or give no folder")
        if (found := pooch.file_hash(path, "md5")) != self.hashes[name]:
            wrong = f"is not {self.spec.name}'s file: its md5 is {found}"
            raise ValueError(f"{path} {wrong}, expected {self.hashes[name]}; {where}")
        return path


def _spec(name: str, class_names: str, licence: str, source: str) -> DataSpec:
    names = tuple(class_names.split(", "))
    return DataSpec(name, (1, 28, 28), names, background=0, licence=licence, source=source)


FASHION = Kin(
    _spec(
        "fashion-mnist",
        "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot",
        licence="MIT",
        source="Zalando Research (Han Xiao, Kashif Rasul and Roland Vollgraf)",
    ),
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)
KMNIST = Kin(
    _spec(
        "kmnist",
        "o, ki, su, tsu, na, ha, ma, ya, re, wo",
        licence="CC BY-SA 4.0",
        source="KMNIST Dataset (created by CODH), adapted from Kuzushiji Dataset (created by NIJL "
        "and others), doi:10.20676/00000341",
    ),
    ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    {
        "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    },
)
EMNIST_DIGITS = Kin(
    _spec(
        "emnist-digits",
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        licence="unknown",
        source="Gregory Cohen, Saeed Afshar, Jonathan Tapson and André van Schaik, of NIST Special "
        "Database 19",
    ),
    (
        "https://biometrics.nist.gov/cs_links/EMNIST/",
        "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/",
    ),
    {"gzip.zip": "58c8d27c78d21e728a6bc7b3cc06412e"},
    member="gzip/emnist-digits-{}-{}-ubyte.gz",
    parts=("train", "test"),
    counts=(240_000, 40_000),
    transposed=True,
)
