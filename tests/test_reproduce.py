"""make reproduce: the commands behind a row of the ledger."""

import pytest

from mnist_transformer.evaluation import ledger
from tools.reproduce import commands


def row(name: str, seconds: float, command: str) -> ledger.Row:
    known = {"seconds": seconds, "images_seen": 1234, "command": command, "metrics": {}}
    machine = {"device": "two cores", "torch": "2", "date": "2026-11-29T10:00", "commit": "abc"}
    return {"recipe": name, **known, **machine}


ROWS = {
    "mnist-vqvae": row("mnist-vqvae", 900.1, "mnist-transformer eval mnist-vqvae"),
    "mnist-var": row("mnist-var", 1800, "mnist-transformer eval mnist-var --num-samples 9"),
    "trial": {**row("trial", 1, ""), "metrics": {"experiment": "var"}},
}


def test_a_row_tells_how_it_is_reproduced() -> None:
    assert commands("mnist-var", ROWS) == [
        "# mnist-vqvae: 15 min, 1,234 images",
        "mnist-transformer train mnist-vqvae",
        "# two cores, torch 2, 2026-11-29, commit abc",
        "mnist-transformer eval runs/mnist-vqvae",
        "# mnist-var: 30 min, 1,234 images",
        "mnist-transformer train mnist-var --max-seconds 1800",
        "# two cores, torch 2, 2026-11-29, commit abc",
        "mnist-transformer eval runs/mnist-var --num-samples 9",
    ]


@pytest.mark.parametrize("name", ["mnist-nothing", "trial"])
def test_what_has_no_row_cannot_be_reproduced(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model '{name}'"):
        commands(name, ROWS)
