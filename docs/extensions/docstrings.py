"""Docstrings as they are written here: formulas in plain text, code in single backticks, annotations by file."""

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment

CODE = re.compile(r"``.*?``|`[^`]*`")
MARKUP = re.compile(r"([*|]|_(?!\w))")


def escaped(line: str) -> str:
    """The line with the letters of plain-text formulas that would be read as markup escaped; code stays as it is."""
    pieces, end = [], 0
    for code in CODE.finditer(line):
        pieces += [MARKUP.sub(r"\\\1", line[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, MARKUP.sub(r"\\\1", line[end:])])


def escape_formulas(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Escape the text of a docstring, before napoleon makes markup of it; examples stay as they are."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")  # what stands before a colon in the first line would be taken for a type
    lines[:] = [line if line.lstrip().startswith((">>>", "...", "* ")) else escaped(line) for line in lines]


def resolve_public_name(
    app: Sphinx, environment: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Lead a name that an annotation spells by its file to where it is documented, `nngeo.<name>` mostly."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not target.startswith("nngeo_"):
        return None
    domain = environment.get_domain("py")
    assert isinstance(domain, PythonDomain)
    public = f"nngeo.{target.rpartition('.')[2]}"
    if public not in domain.objects:
        return None
    kind, page = str(node.get("reftype", "obj")), str(node["refdoc"])
    found: Any = domain.resolve_xref(environment, page, app.builder, kind, public, node, content)
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_formulas, priority=100)
    app.connect("missing-reference", resolve_public_name)
    return {"parallel_read_safe": True}
