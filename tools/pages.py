"""The sources of the site: docs/ and the pages made from the rest of the repository.

    python -m tools.pages    # writes build/docs and build/mkdocs.yml for the site's generator

It adds the pages that stand outside docs/ (README as the start, the log of the laboratory), a
page per model, per experiment and per module, and the notebook. Links to files of the repository
become links to their pages; a picture that is linked is copied. A link to anything else stays as
it is, and the generator then stops with a warning. The generator sees markdown only, so another
one can take its place.
"""

import ast
import json
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tools import cards

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mnist_transformer"
NOTEBOOK = "examples/tour.ipynb"
# Pages outside docs/, by their place in the repository.
PAGES = {
    "README.md": "index.md",
    "LAB.md": "lab.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def modules() -> dict[str, Path]:
    """Every module of the package, by its full name."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def public_names(path: Path) -> list[str]:
    """The names that a module defines for others, in the order of the file.

    ``__all__`` is the list of those where a module has one.
    """
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found = [target.id for target in targets if isinstance(target, ast.Name)]
        if found == ["__all__"]:
            return list(ast.literal_eval(node.value))  # type: ignore[attr-defined]
        names += found
    return list(dict.fromkeys(name for name in names if not name.startswith("_")))


def scripts(folder: str) -> list[Path]:
    """The experiments or examples."""
    return [path for path in sorted((ROOT / folder).glob("*.py")) if path.stem != "common"]


def site_place(path: str) -> str | None:
    """The page or file of the site that shows a file of the repository, None if there is none."""
    if path in PAGES:
        return PAGES[path]
    if path == NOTEBOOK:
        return "notebook.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("mnist_transformer") and (ROOT / path).exists():
        name = module_name(ROOT / path)
        return f"api/{name}.md" if name in modules() else None
    if path.startswith(("experiments/", "examples/")) and path.endswith(".py"):
        return path.removesuffix(".py") + ".md"
    if path.startswith("results/") and (ROOT / path).is_file():
        return path
    return None


def source(path: Path) -> str:
    """A file's text as the last section of its page; the search passes over it."""
    text = path.read_text(encoding="utf-8")
    return f"\n## Source {{ data-search-exclude }}\n\n````python\n{text}````\n"


def module_page(name: str, path: Path) -> str:
    members = "".join(f"\n        - {member}" for member in public_names(path))
    chosen = f"\n      members:{members}" if members else "\n      members: false"
    return f"# {name}\n\n::: {name}\n    options:{chosen}\n{source(path)}"


def _docstring(path: Path) -> tuple[str, str]:
    """A script's first sentence and the rest of its docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    head, _, rest = text.partition("\n\n")
    return head.replace("\n", " ").rstrip("."), rest


def pages_about(script: Path) -> list[Path]:
    """The pages of docs/ that name an experiment."""
    named = re.compile(rf"experiments[./]{script.stem}\b")
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [page for page in pages if named.search(page.read_text(encoding="utf-8"))]


def script_page(path: Path) -> str:
    head, rest = _docstring(path)
    parts = [f"# {head}\n\n{rest}\n"]
    if path.parent.name == "experiments":
        links = (f"[{title(page)}](../docs/{page.name})" for page in pages_about(path))
        parts.append(f"Findings: {', '.join(links)}.\n")
        plots = sorted((ROOT / "results" / path.stem.replace("_", "-")).glob("plot.png"))
        parts += [f"![Its figures](../{plot.relative_to(ROOT)})\n" for plot in plots]
    return "\n".join(parts) + source(path)


def title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def notebook_page() -> str:
    """The notebook's cells, one after another."""
    notebook = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))
    cells = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(cells) + "\n"


def generated() -> Iterator[tuple[str, str, str]]:
    """Every generated page: its place in the site, its text, the folder its links start from."""
    for name, place in PAGES.items():
        yield place, (ROOT / name).read_text(encoding="utf-8"), ""
    yield "notebook.md", notebook_page(), "examples"
    yield "models/index.md", cards.index(), "docs/models"
    for name in cards.CARDS:
        yield f"models/{name}.md", cards.card(name, on_site=True), "docs/models"
    for path in [*scripts("experiments"), *scripts("examples")]:
        yield f"{path.parent.name}/{path.stem}.md", script_page(path), path.parent.name
    for name, path in modules().items():
        yield f"api/{name}.md", module_page(name, path), ""


def _nav(section: str) -> list[Any]:
    """The generated pages of a section, as an entry of mkdocs.yml's nav."""
    if section == "models/":
        return ["models/index.md", *(f"models/{name}.md" for name in cards.CARDS)]
    if section in ("experiments/", "examples/"):
        return [f"{section}{path.stem}.md" for path in scripts(section.rstrip("/"))]
    wings: dict[str, list[Any]] = {}
    for name in modules():
        wing, label = (name.split(".")[1:2] or ["package"])[0], name.partition(".")[2] or name
        wings.setdefault(wing, []).append({label: f"api/{name}.md"})
    return [{wing: pages} if len(pages) > 1 else pages[0] for wing, pages in wings.items()]


def _filled(entry: Any) -> Any:
    """An entry of the nav; generated pages replace a section that ends in a slash."""
    if isinstance(entry, list):
        return [_filled(part) for part in entry]
    if isinstance(entry, dict):
        return {label: _filled(part) for label, part in entry.items()}
    return _nav(entry) if entry.endswith("/") else entry


def in_site(text: str, place: str, folder: str, pictures: set[str]) -> str:
    """A page with its links to the repository's files as links to pages, outside of code.

    Args:
        place: the page's place in the site.
        folder: the folder of the repository that its links start from.
        pictures: the set to which files that it shows are added.
    """

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        target = None if ":" in match[2] else site_place(path)
        if target is None:
            return match[0]
        if path.startswith("results/"):
            pictures.add(path)
        return match[1] + posixpath.relpath(target, posixpath.dirname(place)) + match[3]

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(parts) + _LINK.sub(link, text[end:])


def write(folder: Path) -> None:
    """Write the site's sources into ``folder``/docs, and its nav into ``folder``/mkdocs.yml."""
    docs = folder / "docs"
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(ROOT / "docs", docs)
    pictures: set[str] = set()
    own = [(p.name, p.read_text(encoding="utf-8"), "docs") for p in (ROOT / "docs").glob("*.md")]
    for place, text, start in [*own, *generated()]:
        path = docs / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(in_site(text, place, start, pictures), encoding="utf-8")
    for picture in pictures:
        (docs / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / picture, docs / picture)
    nav = _filled(yaml.safe_load((ROOT / "nav.yml").read_text(encoding="utf-8")))
    config = {"INHERIT": "../mkdocs.yml", "nav": nav}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    write(ROOT / "build")
