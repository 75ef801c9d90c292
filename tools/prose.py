"""The prose check: patterns of unidiomatic English that must not come back (`make prose`).

    python -m tools.prose                       # README.md and docs/
    python -m tools.prose mnist_transformer     # docstrings, comments, help and errors of a folder

In markdown it reads everything but code, link targets and the ledger's tables. In Python it reads
docstrings, comments and strings of several words. A sentence of more than 35 words is a warning:
it is counted, and shown by ``--long``.
"""

import ast
import inspect
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import tyro

from mnist_transformer.utils.terminal import exit_code, say

ROOT = Path(__file__).parent.parent
DEFAULT = ("README.md", "docs", "mnist_transformer", "experiments", "examples")
MAX_WORDS = 35

PATTERNS = {
    "opens with What, Which or Of": re.compile(r"^(?:What|Which|Of)\b(?!.*\?$)"),
    "labels a question": re.compile(r"^The questions?:"),
    "is no X": re.compile(
        r"(?<!there )\b(?:is|are|was|were) no\b(?! (?:longer|more|less|\w+er)\b)", re.IGNORECASE
    ),
    "there are no": re.compile(r"\bthere (?:is|are|was|were) no\b", re.IGNORECASE),
    "anew": re.compile(r"\banew\b"),
    "besides": re.compile(r"\b[Bb]esides\b"),
    "sooner": re.compile(r"\bsooner\b"),
    "by itself": re.compile(r"\bby itself\b"),
    "as it comes": re.compile(r"\bas (?:it|they) comes?\b"),
    "one X a Y": re.compile(
        r"(?:(?<![Ee]very )(?<![Ee]ach )\bone|(?:^|[,;:(] |\bby )an?)"
        r" (?!(?:or|for|of|in|on|at|with|to|as|is|has|that|by|and|such|than)\b)[\w-]+ an? [\w-]+\b"
    ),
    "Xs a second": re.compile(
        r"\b(?:images|digits|pictures|steps|tokens|samples|pixels|patches|MB|bits) an? "
        r"(?:second|minute|image|digit|step|pixel|patch|file|class|seed)\b"
    ),
}

_SKIPPED = re.compile(
    r"^(?:```|````).*?^(?:```|````)|<!-- ledger:.*?<!-- /ledger -->|<!--.*?-->",
    re.DOTALL | re.MULTILINE,
)
_END = re.compile(r"(?<=[.!?:;])[\"')*]*\s+(?=[\"'(*]*[A-Z`\d])")

Found = tuple[int, str]


def _plain(text: str) -> str:
    """Prose without marks: `code` becomes one word, a link its text."""
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"``.+?``|`[^`]+`", "CODE", text)
    return re.sub(r"[*_]{1,2}(?=\w)|(?<=[\w.,:;!?)])[*_]{1,2}", "", text)


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def markdown_blocks(text: str) -> Iterator[Found]:
    """The line and the text of each paragraph, item, heading and table cell."""
    start, lines = 0, list[str]()
    for number, line in enumerate([*_SKIPPED.sub(_blank, text).splitlines(), ""], start=1):
        stripped = line.strip()
        is_table, is_code = stripped.startswith("|"), line.startswith("    ") and not lines
        begins = re.match(r"(?:[-*>] |\d+\. |#+ )", stripped)
        if lines and (not stripped or begins or is_table):
            yield start, " ".join(lines)
            lines = []
        if is_table:
            yield from ((number, cell.strip()) for cell in stripped.strip("|").split("|"))
        elif stripped and not is_code:
            start = start if lines else number
            lines.append(stripped.removeprefix(begins[0]) if begins else stripped)


def _string(node: ast.AST) -> str | None:
    """A string's text; X stands for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values
        )
    return None


def python_blocks(text: str) -> Iterator[Found]:
    """The line and the text of docstrings' paragraphs, of comments and of strings of words."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        found = None if id(node) in inside else _string(node)
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node)}
        if found is not None and len(found.split()) > 3:
            line = node.lineno - 1  # type: ignore[attr-defined]
            yield from ((line + n, block) for n, block in markdown_blocks(inspect.cleandoc(found)))
    comment, start = list[str](), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            start = start if comment else token.start[0]
            comment.append(token.string.lstrip("#: "))
        elif token.type != tokenize.NL and comment:
            yield start, " ".join(comment)
            comment = []


def check(path: Path) -> tuple[list[tuple[int, str, str]], list[tuple[int, str]]]:
    """A file's findings (line, pattern, sentence) and its long sentences (line, sentence)."""
    text = path.read_text(encoding="utf-8")
    blocks = python_blocks(text) if path.suffix == ".py" else markdown_blocks(text)
    findings, long = [], []
    for line, block in blocks:
        for sentence in _END.split(_plain(block)):
            sentence = sentence.strip(" \"'(*")
            names = [name for name, pattern in PATTERNS.items() if pattern.search(sentence)]
            findings += [(line, name, sentence) for name in names]
            if len(sentence.split()) > MAX_WORDS:
                long.append((line, sentence))
    return findings, long


def files(paths: Iterable[Path]) -> list[Path]:
    """Markdown and Python files, including those in folders."""
    found: list[Path] = []
    for path in paths:
        inside = [p for kind in ("*.md", "*.py") for p in path.rglob(kind)]
        found += sorted(inside) if path.is_dir() else [path]
    return found


def main(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (), /, *, long: bool = False
) -> None:
    """Check prose; ValueError if there are findings.

    Args:
        paths: Files or folders; README.md, docs, the package, experiments and examples by default.
        long: Show the sentences of more than 35 words too.
    """
    counts, num_long = Counter[Path](), 0
    for path in files(paths or map(ROOT.joinpath, DEFAULT)):
        findings, found = check(path)
        for line, name, sentence in findings:
            say(f"{path}:{line}: {name}: {sentence[:100]}")
        for line, sentence in found if long else ():
            say(f"{path}:{line}: {len(sentence.split())} words: {sentence[:100]}")
        counts[path] += len(findings)
        num_long += len(found)
    say(f"{num_long} sentences of more than {MAX_WORDS} words")
    if total := counts.total():
        each = ", ".join(f"{path} {n}" for path, n in counts.most_common() if n)
        raise ValueError(f"{total} findings, expected none: {each}")


if __name__ == "__main__":
    sys.exit(exit_code("tools.prose", lambda: tyro.cli(main, prog="python -m tools.prose")))
