"""Writes hooks.md from the hook specifications: run it after changing them. A test compares the two."""

import inspect
import re
import textwrap
from pathlib import Path

from nngeo_core.plugins import API_VERSION, hookspecs

PAGE = Path(__file__).with_name("hooks.md")

HEAD = f"""# Hook reference

Written by [make_hooks.py](make_hooks.py) from `nngeo_core.plugins.hookspecs`; version {API_VERSION} of the hooks.
"""

SECTION = re.compile(r"^(Args|Returns|Raises|Example):\n((?:    .*\n|\n)+)", re.MULTILINE)


def render() -> str:
    """The page."""
    hooks = [name for name in hookspecs.__all__ if name.startswith("nngeo_")]
    introduction = (inspect.getdoc(hookspecs) or "").partition("\n\n")[2]
    return "\n".join([HEAD, as_markdown(introduction), "", *map(describe, hooks)])


def describe(name: str) -> str:
    """What one hook takes, what it returns, and an example."""
    hook = getattr(hookspecs, name)
    signature = str(inspect.signature(hook)).replace("'", "")
    text = SECTION.sub(as_section, (inspect.getdoc(hook) or "") + "\n")
    return f"## `{name}`\n\n```\n{name}{signature}\n```\n\n{as_markdown(text).strip()}\n"


def as_section(match: re.Match[str]) -> str:
    """A section of a docstring: a list of arguments, a paragraph, or an example in a fence."""
    title, body = match[1], textwrap.dedent(match[2]).strip()
    if title == "Example":
        return f"```pycon\n{body}\n```\n"
    if title == "Args":
        return (
            "".join(f"- `{line.partition(': ')[0]}`: {line.partition(': ')[2]}\n" for line in body.splitlines()) + "\n"
        )
    return f"{title}: {body}\n\n"


def as_markdown(text: str) -> str:
    """Text with code in single backquotes."""
    return re.sub("(?<!`)``(?!`)", "`", text)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
