"""The parts of tools.hard_use, with small counts: they find no fault, and notice one."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch

from mnist_transformer.evaluation import ledger
from mnist_transformer.models import checkpoint
from tools import hard_use, trials
from tools.hard import kills, pictures, terminals, visitors
from tools.hard.flips import flips
from tools.hard.seeds import compare


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_end_in_the_same_weights(tmp_path: Path) -> None:
    lines = list(kills.kills(2, tmp_path))
    assert sum(figures.get("bit-identical weights") or 0 for _, figures in lines) == 2
    assert lines[-1] == ({"killed during": "all"}, {"kills": 2, "tracebacks": 0})


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    for settings, figures in flips(4, tmp_path):
        assert figures["no sentence"] == 0, settings
        if (settings["file"], settings["part"]) != ("IDX", "values"):
            assert figures["unnoticed"] == 0, settings


def test_a_reader_that_notices_nothing_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_transformer.utils.trees.checksum", lambda *covered: None)
    found = {tuple(x.values()): y for x, y in flips(20, tmp_path)}
    assert found["state", "tensors"]["unnoticed"]


def test_damaged_pictures_are_read_or_refused(tmp_path: Path) -> None:
    for settings, figures in pictures.many_pictures(24, tmp_path):
        assert figures["no sentence"] == figures["over 10 s"] == 0, settings
        assert figures["read"] + figures["refused"] == figures["pictures"] == 3


def test_a_terminal_that_does_not_answer_is_told_of(tmp_path: Path) -> None:
    code, said = terminals.in_terminal("--version", tmp_path, {"TERM": "xterm"})
    assert code == 0
    assert said.startswith("mnist-transformer ")


def test_other_bytes_are_counted() -> None:
    base = torch.zeros(4, 1, 2, 2).numpy().astype("uint8")
    other = base.copy()
    other[1, 0, 0, 0] = 9
    assert list(compare(base, [base[:3], other], "x").values()) == [7, 1, 9]


def test_the_visitors_know_what_the_model_draws(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "load", lambda name, device: checkpoint.load(tiny_checkpoint))
    assert set(visitors.expected()) == set(visitors.WISHES)


def test_the_visitors_know_what_each_button_takes(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    from mnist_transformer.web import restore_tab, shelf, side_by_side

    filled = shelf.fill({"a": tiny_checkpoint})
    with shelf.Page() as built:
        side_by_side.build_draw(filled.models)
        restore_tab.build(filled.models)
    answer = httpx.Response(200, text=json.dumps(built.get_config_file(), default=str))
    client = partial(httpx.Client, transport=httpx.MockTransport(lambda request: answer))
    monkeypatch.setattr(visitors.httpx, "Client", client)
    page = visitors.Page("nowhere")
    assert page.values["Draw"][:3] == ["7", 9, 0]
    assert "a" in page.values["Restore"]


def fake(settings: str) -> Callable[..., object]:
    return lambda *arguments: iter([({"killed during": settings}, {"kills": 5, "hung": None})])


def test_counts_become_rows_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ledger, "results_folder", lambda: tmp_path)
    monkeypatch.setattr("sys.argv", ["hard_use", "--parts", "kills"])
    monkeypatch.setattr(hard_use, "kills", fake("saving"))
    hard_use.main(("kills",), record=False)
    assert not (tmp_path / "ledger.jsonl").exists()
    hard_use.main(("kills",))
    assert capsys.readouterr().out == "kills, saving: kills 5\n" * 2
    rows = ledger.latest(tmp_path / "ledger.jsonl")
    assert "| saving | 5 |" in trials.table(rows, "hard-use-kills")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"parts": ("fire",)}, "part is 'fire', expected one of kills, flips"),
        ({"terminal_share": 2}, r"terminal_share is 2, expected a number in \(0, 1\]"),
    ],
)
def test_senseless_arguments(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        hard_use.main(**options)
