"""The built site (`make site` builds it and runs this): links, the API's names, no requests."""

import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tools import pages

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"
FETCHED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="`make site` builds the site"),
]


class Reader(HTMLParser):
    """The ids of a page, its links, and the addresses that a browser fetches with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if found.get(FETCHED.get(tag, "")) and found.get("rel") not in ("canonical", "next"):
            self.fetched.append(found[FETCHED[tag]] or "")


@cache
def read(path: Path) -> Reader:
    return Reader(path)


def html() -> list[Path]:
    return [path for path in sorted(SITE.rglob("*.html")) if path.name != "404.html"]


def test_every_link_leads_somewhere() -> None:
    lost = []
    for page in html():
        for link in [*read(page).links, *read(page).fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = target.is_file()
            if known and parts.fragment and target.suffix == ".html":
                known = unquote(parts.fragment) in read(target).ids
            if not known:
                lost.append(f"{page.relative_to(SITE)}: {link}")
    assert not lost


def test_nothing_is_fetched_from_elsewhere() -> None:
    for page in html():
        assert not [address for address in read(page).fetched if "//" in address]


@pytest.mark.parametrize("name", pages.modules())
def test_every_public_name_is_on_its_page(name: str) -> None:
    found = read(SITE / "api" / f"{name}.html").ids
    names = pages.public_names(pages.modules()[name])
    assert not [public for public in names if f"{name}.{public}" not in found]


def test_the_search_runs_from_a_folder() -> None:
    """In a browser, without a server; no request leaves the folder, nothing goes wrong."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    asked, errors = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="dark")
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto((SITE / "index.html").as_uri())
        assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"
        page.locator("input[name=query]").fill("guidance")
        page.locator(".md-search-result__item").first.wait_for(state="attached", timeout=60_000)
        browser.close()
    assert not errors
    assert {urlsplit(address).scheme for address in asked} <= {"file", "data", "about", "blob"}
