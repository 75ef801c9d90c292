"""The README says what is so: its commands run, its Python runs, its tables are the ledger's.

Every line of a ```bash or ```console fence is a command. It is run, in an empty folder, with
this environment's programs; unless a comment at its end (or alone in the line above) says that
it `takes` a while, `needs` something or is `not run here`, or it sets up the project (make,
pip, git): then only the words of `mnist-transformer` commands are checked. A ```python fence
is executed; its first line may carry the same comment, and then it is only compiled.
"""

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from mnist_transformer import cli
from mnist_transformer.models import loading
from mnist_transformer.options import FLAGSHIP
from tools import report as pages

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^```", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"#.*\b(takes|needs|not run here)\b")
SET_UP = (
    "make",
    "pip",
    "python",
    "git",
    "cd",
    "source",
    ".",
    "accelerate",
    "tensorboard",
    "export",
)


def fences(*languages: str) -> list[str]:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    return [m["body"] for m in FENCE.finditer(text) if m["language"] in languages]


def commands() -> list[str]:
    """Command lines, each with its remark at the end; output and prompts are left out."""
    found = []
    for body in fences("bash", "sh", "console"):
        has_prompts = any(line.startswith("$ ") for line in body.splitlines())
        remark = ""
        for line in body.replace("\\\n", " ").splitlines():
            if line.lstrip().startswith("#"):
                remark = "  " + line.strip()
            elif line.strip() and (line.startswith("$ ") or not has_prompts):
                found.append(line.removeprefix("$ ").strip() + remark)
                remark = ""
    return found


def words_of(command: str) -> list[str]:
    """Its words without VARIABLE=value in front."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    return words


def parse(arguments: list[str]) -> None:
    """Check verb and flags as the command line does, and do nothing; SystemExit if wrong."""

    def idle(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def nothing(*args: object, **kwargs: object) -> None:
            pass

        return nothing

    with patch.dict(cli.VERBS, {name: idle(verb) for name, verb in cli.VERBS.items()}):
        assert cli.main(arguments) == 0


@pytest.mark.parametrize("command", commands())
def test_commands(command: str, tmp_path: Path) -> None:
    words = words_of(command)
    if not words:  # NAME=value alone
        return
    ours = words[1:] if words[:1] == [cli.PROG] else None
    if ours is not None and ours != ["--version"] and "--help" not in ours:
        parse(ours)
    if ours is None:
        assert words[0] in SET_UP, f"the README runs {words[0]!r}, which no test knows"
        if words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert all(word in targets or "=" in word for word in words[1:])
        return
    if NOT_RUN.search(command):
        return
    if ours[:1] == ["draw"] and "--model" not in ours:
        needs_weights(FLAGSHIP)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("body", fences("python", "py"))
def test_python(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(body, "README.md", "exec")
    if NOT_RUN.search(body.splitlines()[0]):
        return
    if "load(" in body:
        needs_weights(FLAGSHIP)
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "readme"})


def needs_weights(name: str) -> None:
    if name not in loading.shipped():
        pytest.skip(f"the weights of {name} are not here yet")


def test_tables_are_the_ledgers() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert pages.render(text) == text, f"{page.name} is out of date: run `make report`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if "://" not in link and not link.startswith("mailto:"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"


def test_parse_checks_words_without_running() -> None:
    parse(["train", "mnist-patch", "--max-seconds", "60"])
    with pytest.raises(SystemExit):
        parse(["train", "mnist-patch", "--max-minutes", "1"])
