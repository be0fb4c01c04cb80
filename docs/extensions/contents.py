"""The table of contents takes in every page: one that the start page does not place comes where it says `other-pages`."""

import re
from pathlib import Path

from sphinx.application import Sphinx


def place_other_pages(app: Sphinx, page: str, text: list[str]) -> None:
    """Put the names of the pages that no toctree of the start page names in place of `other-pages`."""
    if page != app.config.root_doc:
        return
    placed = set(re.findall(r"^[\w/-]+$", text[0], re.MULTILINE))
    others = [path.stem for path in sorted(Path(app.srcdir).glob("*.md")) if path.stem not in {*placed, page}]
    text[0] = re.sub(r"^other-pages$", "\n".join(others), text[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", place_other_pages)
    return {"parallel_read_safe": True}
