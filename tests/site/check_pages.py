"""The built site is whole: every public name has its place, every link leads somewhere, nothing is loaded from elsewhere.

`python -m nox -s docs` builds the pages and runs this.
"""

import importlib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parents[2] / "build" / "docs"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PACKAGES = ["nngeo", "nngeo_core.plugins", "nngeo_core.testing"]
LOADED = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page has to link to, what it links to, and what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.links += [found[name] for name in ("href", "src") if name in found]
        if LOADED.get(tag) in found:
            self.loaded.append(found[LOADED[tag]])


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def lost(name: str, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return False
    target = (SITE / name).parent / unquote(parts.path) if parts.path else SITE / name
    if not target.is_file():
        return True
    return target.suffix == ".html" and unquote(parts.fragment) not in page(target).anchors


def test_there_are_pages() -> None:
    assert {"index.html", "conventions.html", "api/index.html", "auto_gallery/index.html", "search.html"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    assert [link for link in page(SITE / name).links if lost(name, link)] == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    assert [source for source in page(SITE / name).loaded if urlsplit(source).scheme not in ("", "data")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    anchors = {anchor for name in PAGES if name.startswith("api/") for anchor in page(SITE / name).anchors}
    assert [name for name in importlib.import_module(package).__all__ if f"{package}.{name}" not in anchors] == []
