"""Which plugins are installed, in a fixed order, and which of them are disabled.

pluggy's own loader stops at the first broken plugin and skips one whose name is taken; this one skips none, and leaves
the importing, and what becomes of failures, to its caller.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

__all__ = ["Plugin", "PluginWarning", "installed", "is_disabled"]

GROUP = "nngeo"
DISABLED = "NNGEO_DISABLED_PLUGINS"


class PluginWarning(UserWarning):
    """A plugin failed; what it provides is missing, everything else works."""


@dataclass(frozen=True, order=True)
class Plugin:
    """Who a plugin is: the identity that errors, warnings and ``nngeo plugins`` show.

    Attributes:
        distribution: The distribution that announces it; empty for one registered in this process.
        name: The name of its entry point, or the one it was registered by.
        version: The distribution's version.

    Example:
        >>> print(Plugin("nngeo-stripes", "stripes", "1.0"))
        plugin 'stripes' of distribution nngeo-stripes 1.0
        >>> print(Plugin("", "mine", ""))
        plugin 'mine' registered in this process
    """

    distribution: str
    name: str
    version: str

    def __str__(self) -> str:
        """The plugin and where it comes from."""
        origin = (
            f"of distribution {self.distribution} {self.version}" if self.distribution else "registered in this process"
        )
        return f"plugin {self.name!r} {origin}"

    def is_among(self, names: Iterable[str]) -> bool:
        """Whether one of these names is the plugin's or its distribution's, however it is spelt.

        Example:
            >>> Plugin("nngeo-stripes", "stripes", "1.0").is_among(["NNGeo_Stripes"])
            True
        """
        meant = {_normalized(name) for name in names} - {""}
        return not meant.isdisjoint({_normalized(self.name), _normalized(self.distribution)})


def installed() -> list[tuple[Plugin, EntryPoint]]:
    """Every entry point of the group ``nngeo``, sorted by distribution and name; none is imported."""
    found = [(_identity(entry), entry) for entry in entry_points(group=GROUP)]
    return sorted(found, key=lambda pair: pair[0])


def _identity(entry: EntryPoint) -> Plugin:
    return Plugin(_field(entry, "Name"), entry.name, _field(entry, "Version"))


def _field(entry: EntryPoint, key: str) -> str:
    with suppress(Exception):  # a half-removed distribution may keep its entry points and lose its metadata
        if entry.dist is not None and key in entry.dist.metadata:
            return entry.dist.metadata[key]
    return "unknown"


def is_disabled(plugin: Plugin) -> bool:
    """Whether ``NNGEO_DISABLED_PLUGINS``, a comma-separated list, has the plugin's name or its distribution's."""
    return plugin.is_among(os.environ.get(DISABLED, "").split(","))


def _normalized(name: str) -> str:
    """The spelling under which package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
