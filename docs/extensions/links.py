"""Links that are true of the files in the repository, made true of the site.

A script of the gallery is its page there, the README the start page, any other file outside of docs/ a download.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)\)")


def on_the_site(docs: Path, page: Path, words: str, link: str) -> str:
    """The link of a page, in Markdown."""
    target = Path(os.path.normpath(page.parent / link))
    if target.parent == docs / "gallery":
        name = "index" if target.stem == "GALLERY_HEADER" else target.stem
        return f"[{words}](/auto_gallery/{name}.rst)"
    if target == docs.parent / "README.md":
        return f"[{words}](/index.md)"
    return f"[{words}]({link})" if target.is_relative_to(docs) else f"{{download}}`{words} <{link}>`"


def rewrite_links(app: Sphinx, page: str, text: list[str]) -> None:
    """Rewrite the links of a page that is about to be read."""
    if Path(app.env.doc2path(page)).suffix == ".md":
        docs = Path(app.srcdir)
        text[0] = LINK.sub(lambda link: on_the_site(docs, docs / page, link[1], link[2]), text[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", rewrite_links)
    return {"parallel_read_safe": True}
