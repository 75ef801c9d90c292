"""Model families are known by name in models/, prompting/ and recipes.py alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mnist_transformer"
NO_FAMILIES = {
    "__init__",
    "base",
    "checkpoint",
    "codec",
    "config",
    "export",
    "guided",
    "hub",
    "inpaint",
    "loading",
}
FAMILIES = {
    f"mnist_transformer.models.{path.stem}"
    for path in (PACKAGE / "models").iterdir()
    if path.stem not in NO_FAMILIES and not path.stem.startswith("__")
}
MAY_KNOW_FAMILIES = (PACKAGE / "models", PACKAGE / "prompting", PACKAGE / "recipes.py")


def files(folder: str) -> list[Path]:
    return [
        path
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not any(path == known or known in path.parents for known in MAY_KNOW_FAMILIES)
    ]


def family_names(path: Path) -> set[str]:
    """The names that a file imports from modules of families."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if any(f"{module}.".startswith(f"{family}.") for module in modules for family in FAMILIES):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def test_families_are_found() -> None:
    assert {"mnist_transformer.models.pixel", "mnist_transformer.models.var"} <= FAMILIES
    assert family_names(PACKAGE / "recipes.py")


@pytest.mark.parametrize(
    "path",
    files("mnist_transformer") + files("tools"),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_file_imports_a_family(path: Path) -> None:
    assert not family_names(path)


@pytest.mark.parametrize("path", files("experiments"), ids=lambda path: str(path.relative_to(ROOT)))
def test_experiments_do_not_ask_for_a_family(path: Path) -> None:
    names = family_names(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            assert not asked & names
