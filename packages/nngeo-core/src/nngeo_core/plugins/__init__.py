"""Plugins: how layer rules, representations, generators and likelihoods become known by name.

Built-in pieces register exactly as third-party ones do, through an entry point of the group ``nngeo`` that names a
module with `hookimpl`-marked hooks. Nothing is loaded before the first look-up in `registry`.
"""

from nngeo_core.plugins.hookspecs import API_VERSION, hookimpl
from nngeo_core.plugins.loader import Plugin, PluginWarning
from nngeo_core.plugins.registry import Registry, registry
from nngeo_core.plugins.roster import PluginStatus
from nngeo_core.plugins.table import Table

__all__ = ["API_VERSION", "Plugin", "PluginStatus", "PluginWarning", "Registry", "Table", "hookimpl", "registry"]
