"""Links from a page to a file outside of docs/, which work in the repository, hand over that file on the site."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)")


def hand_over_files(app: Sphinx, page: str, text: list[str]) -> None:
    """Make downloads of the links that leave the folder of the pages; the README is the start page here."""
    folder = Path(app.srcdir, page).parent

    def changed(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / link[2]))
        if target.is_relative_to(app.srcdir):
            return link[0]
        if target == Path(app.srcdir).parent / "README.md":
            return f"[{link[1]}](/index.md)"
        return f"{{download}}`{link[1]} <{link[2]}>`"

    text[0] = LINK.sub(changed, text[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", hand_over_files)
    return {"parallel_read_safe": True}
