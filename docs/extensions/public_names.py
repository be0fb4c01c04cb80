"""The directive `public`: documents the public names of a package whose files lie in one of its stations.

    .. public:: nngeo nngeo_core.verbs

lists the names in `nngeo.__all__` that `nngeo_core.verbs` and what is under it define, in a table, and then each in full. So
a new public name is documented as soon as it is listed; `tests/test_site.py` checks that every one has its page.
"""

import importlib
import inspect
import re
import sys
from typing import Any

from docstrings import escaped
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective


def is_data(value: Any) -> bool:
    """Whether a name means an object that has no docstring of its own."""
    return not (inspect.isclass(value) or inspect.isroutine(value))


def written_under(package: str, name: str) -> tuple[str, str]:
    """The module that assigns an object to a name, and the string that it has beneath."""
    root = package.partition(".")[0]
    for module in sorted(sys.modules):
        if module == root or module.startswith(f"{root}_") or module.startswith(f"{root}."):
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.analyze()
            if ("", name) in analyzer.attr_docs:
                return module, " ".join(analyzer.attr_docs["", name])
    raise LookupError(f"{package}.{name} has no string beneath its assignment")


def public_names(package: str, stations: list[str]) -> dict[str, Any]:
    """The names in a package's `__all__` that one of the stations defines."""
    module = importlib.import_module(package)
    listed = {name: getattr(module, name) for name in module.__all__}

    def lies_there(name: str) -> bool:
        home = written_under(package, name)[0] if is_data(listed[name]) else listed[name].__module__
        return not stations or any(f"{home}.".startswith(f"{prefix}.") for prefix in stations)

    return {name: value for name, value in listed.items() if lies_there(name)}


def summary(text: str) -> str:
    """The first sentence of a docstring, with plain text as it is."""
    text = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", text)[0].rstrip(":")


class Public(SphinxDirective):
    """Documents the public names of one or more stations; `:inherited:` shows what a class has from its bases too."""

    required_arguments = 1
    optional_arguments = 20
    option_spec = {"inherited": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Returns a table of the names, and a description of each."""
        package, *stations = self.arguments
        names = public_names(package, stations)
        if not names:
            raise self.error(f"{package} has no public name from {stations}")
        lines = [".. list-table::", "   :widths: 30 70", "   :class: names", ""]
        for name, value in names.items():
            text = written_under(package, name)[1] if is_data(value) else value.__doc__ or ""
            lines += [f"   * - :py:obj:`{name} <{package}.{name}>`", f"     - {escaped(summary(text))}"]
        for name, value in names.items():
            lines += ["", *self._description(package, name, value)]
        return self.parse_text_to_nodes("\n".join(lines), offset=self.content_offset)

    def _description(self, package: str, name: str, value: Any) -> list[str]:
        if inspect.isclass(value):
            inherited = ["   :inherited-members: dict"] if "inherited" in self.options else []
            return [f".. autoclass:: {package}.{name}", *inherited]
        if inspect.isroutine(value):
            return [f".. autofunction:: {package}.{name}"]
        return [f".. py:data:: {package}.{name}", "", f"   {escaped(written_under(package, name)[1])}"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("public", Public)
    return {"parallel_read_safe": True}
