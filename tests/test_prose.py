"""The prose check finds its patterns, passes over code, and README and docs/ are clean."""

from pathlib import Path

import pytest

from tools import prose

ROOT = Path(__file__).parent.parent


def found(tmp_path: Path, text: str, name: str = "page.md") -> list[str]:
    path = tmp_path / name
    path.write_text(text)
    return [pattern for _, pattern, _ in prose.check(path)[0]]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("First. What was found is small.", "opens with What, Which or Of"),
        ("Which of them helps was not measured.", "opens with What, Which or Of"),
        ("Of four models one is left.", "opens with What, Which or Of"),
        ("The question: is it so?", "labels a question"),
        ("A gate is no head.", "is no X"),
        ("In it there are no words.", "there are no"),
        ("It is trained anew.", "anew"),
        ("Two things changed besides.", "besides"),
        ("It ends sooner.", "sooner"),
        ("It runs by itself.", "by itself"),
        ("They draw as they come.", "as it comes"),
        ("Plots, a line a model.", "one X a Y"),
        ("It takes one step a pixel.", "one X a Y"),
        ("It draws 58 digits a second.", "Xs a second"),
    ],
)
def test_patterns(tmp_path: Path, text: str, pattern: str) -> None:
    assert found(tmp_path, text) == [pattern]


@pytest.mark.parametrize(
    "text",
    [
        "What does patching cost?",
        "It is no longer trained. It is no faster than before.",
        "```\nWhat it is. Trained anew.\n```",
        "It calls `anew`. [A link](besides.md)",
        "<!-- ledger:a -->\n| one step a pixel |\n<!-- /ledger -->",
        "Every one fails a check. One step per pixel. It draws a digit.",
    ],
)
def test_what_is_fine(tmp_path: Path, text: str) -> None:
    assert not found(tmp_path, text)


def test_python_files_are_read_where_they_speak(tmp_path: Path) -> None:
    text = 'anew = "besides"\n# A gate is no head.\nx = f"{anew} is no model of it"\n'
    assert found(tmp_path, text, "module.py") == ["is no X", "is no X"]
    assert found(tmp_path, '"""A model that is trained anew here."""\n', "module.py") == ["anew"]


def test_long_sentences_are_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text("word " * 40 + ".\n")
    prose.main((path,), long=True)
    assert "1 sentences of more than 35 words" in capsys.readouterr().out


def test_readme_and_docs_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    prose.main()
