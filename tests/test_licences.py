"""The licences that docs/models.md states are those that the packages state."""

import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([\w-]+) \| (?:always|`.*) \| (.+) \|$", PAGE, re.MULTILINE))
# A word of each licence, as some packages name it.
WORDS = {
    "Apache-2.0": "apache",
    "BSD-3-Clause": "bsd",
    "ISC": "isc",
    "LGPL-3.0-or-later": "lgpl",
    "MIT": "mit",
    "MIT, Apache-2.0 or BSL-1.0": "mit or apache-2.0 or bsl-1.0",
    "MIT-CMU": "mit-cmu",
    "MPL-2.0": "mpl",
    "PSF-based (matplotlib licence)": "python software foundation",
}


def test_every_dependency_has_its_licence() -> None:
    named = re.findall(r'^ +"([\w-]+)(?:\[\w+\])?>=', PROJECT, re.MULTILINE)
    assert set(ROWS) == set(named)


@pytest.mark.parametrize("package", ROWS)
def test_licences_are_those_of_the_packages(package: str) -> None:
    try:
        stated = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed here")
    fields = ("License-Expression", "License", "Classifier")
    words = " ".join(text for field in fields for text in stated.get_all(field) or ())
    assert WORDS[ROWS[package]] in words.lower()
