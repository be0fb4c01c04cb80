"""The command line: ``nngeo plugins`` lists every plugin and its state; `commands` holds the others."""

import argparse
import textwrap
import warnings
from collections.abc import Sequence
from itertools import zip_longest

from nngeo_core.commands.compare import add_compare
from nngeo_core.commands.compute import add_compute
from nngeo_core.plugins import PluginStatus, PluginWarning, registry

__all__ = ["main"]

_HEADER = ("plugin", "distribution", "version", "provides", "state")
_WIDTH = 44


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after the program's name; by default those it was started with.

    Returns:
        The exit status, 0 if all went well.

    Raises:
        SystemExit: If the words make no command, with status 2, or ask for help.
    """
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nngeo", description="Fisher matrices of PyTorch models.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    plugins = commands.add_parser("plugins", help="list every plugin, what it provides, and its state")
    plugins.set_defaults(run=_plugins)
    add_compare(commands)
    add_compute(commands)
    return parser


def _plugins(_: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the table says it
        rows = [_row(status) for status in registry.status()]
    print(_table([_HEADER, *rows]))
    return 0


def _row(status: PluginStatus) -> tuple[str, ...]:
    plugin = status.plugin
    provides = ", ".join(status.provides) or "nothing"
    return plugin.name, plugin.distribution or "(this process)", plugin.version or "-", provides, status.state


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns side by side, long cells wrapped."""
    lines = [line for row in rows for line in zip_longest(*map(_wrapped, row), fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _wrapped(cell: str) -> list[str]:
    return textwrap.wrap(cell, _WIDTH, break_on_hyphens=False)
