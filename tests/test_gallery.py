"""What every gallery page has; the session `docs` executes them."""

import ast
from pathlib import Path

import pytest

import nngeo

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
PAGES = sorted(FOLDER.glob("*.py"))
LINES = 140


def tree(page: Path) -> ast.Module:
    return ast.parse(page.read_text(encoding="utf-8"))


def imported(page: Path) -> dict[str, list[str]]:
    """The names that a page imports from each module."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree(page)):
        if isinstance(node, ast.ImportFrom):
            found.setdefault(node.module or "", []).extend(name.name for name in node.names)
        if isinstance(node, ast.Import):
            found.update({name.name: [] for name in node.names})
    return found


def page_id(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=page_id)
class TestPage:
    def test_it_is_run_by_the_gallery(self, page: Path) -> None:
        assert page.name.startswith("plot_")

    def test_it_begins_with_a_title_and_says_what_to_look_for(self, page: Path) -> None:
        text = ast.get_docstring(tree(page)) or ""
        title, underline, rest = text.split("\n", 2)
        assert underline == "=" * len(title)
        assert "**What to look for**: " in rest

    def test_it_uses_public_names_of_nngeo_alone(self, page: Path) -> None:
        modules = imported(page)
        assert set(modules["nngeo"]) <= set(nngeo.__all__)
        assert [module for module in modules if module.startswith("nngeo_") or module.startswith("nngeo.")] == []

    def test_it_is_seeded(self, page: Path) -> None:
        assert "torch.manual_seed(0)" in page.read_text(encoding="utf-8")

    def test_it_draws_then_asserts(self, page: Path) -> None:
        shows = [
            node.lineno
            for node in ast.walk(tree(page))
            if isinstance(node, ast.Call) and ast.unparse(node) == "plt.show()"
        ]
        asserts = [node.lineno for node in tree(page).body if isinstance(node, ast.Assert)]
        assert len(shows) == 1
        assert asserts and asserts[-1] > shows[0]

    def test_it_is_short(self, page: Path) -> None:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= LINES


def test_the_gallery_has_a_header() -> None:
    assert PAGES
    assert (FOLDER / "GALLERY_HEADER.rst").read_text(encoding="utf-8").startswith("Gallery\n=======\n")
