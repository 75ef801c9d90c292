"""The sources of the site: every model, experiment and module has a page, every link a target."""

from pathlib import Path

import pytest
import yaml

from mnist_transformer.models import loading
from tools import cards, pages

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    pages.write(folder)
    return folder


def leaves(entry: object) -> list[str]:
    if isinstance(entry, dict):
        entry = list(entry.values())
    return [leaf for part in entry for leaf in leaves(part)] if isinstance(entry, list) else [entry]


def test_the_nav_names_every_page_once(written: Path) -> None:
    named = leaves(yaml.safe_load((written / "mkdocs.yml").read_text())["nav"])
    found = [str(path.relative_to(written / "docs")) for path in written.rglob("*.md")]
    assert sorted(named) == sorted(found)


def test_every_module_model_and_script_has_a_page(written: Path) -> None:
    docs = written / "docs"
    assert all((docs / "api" / f"{name}.md").is_file() for name in pages.modules())
    assert set(cards.CARDS) == set(loading.shipped())
    for name in cards.CARDS:
        text = (docs / "models" / f"{name}.md").read_text()
        for head in ("Figures", "Limits", "Training", "Data", "Settings", "File"):
            assert f"\n## {head}\n" in text
    for path in [*pages.scripts("experiments"), *pages.scripts("examples")]:
        assert (docs / path.parent.name / f"{path.stem}.md").is_file()


@pytest.mark.parametrize("script", pages.scripts("experiments"), ids=lambda path: path.stem)
def test_a_page_tells_the_findings_of_every_experiment(script: Path) -> None:
    assert pages.pages_about(script)


def test_links_to_the_repository_become_links_to_pages() -> None:
    text = "[a](../mnist_transformer/recipes.py) [b](mar.md#limits) [c](https://x.org)"
    pictures: set[str] = set()
    linked = pages.in_site(f"{text} ![d](../results/a/b.png)", "models/x.md", "docs", pictures)
    assert linked.startswith("[a](../api/mnist_transformer.recipes.md) [b](../mar.md#limits)")
    assert "[c](https://x.org) ![d](../results/a/b.png)" in linked
    assert not pictures  # there is no such file, so the generator warns
    code = "```\n[a](../LAB.md)\n```\n"
    assert pages.in_site(code, "x.md", "docs", pictures) == code


def test_cards_for_the_hub_stand_alone(tmp_path: Path) -> None:
    cards.write(tmp_path)
    for name in cards.CARDS:
        text = (tmp_path / f"{name}.md").read_text()
        assert text.startswith("---\nlicense: apache-2.0\n")
        assert "](" not in text
