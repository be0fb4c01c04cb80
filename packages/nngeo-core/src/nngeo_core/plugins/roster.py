"""The plugins of one registry: what each provides, which failed and why, which are blocked."""

from typing import Any, NamedTuple

import pluggy

from nngeo_core.plugins import hookspecs
from nngeo_core.plugins.contributions import ask, register_hooks
from nngeo_core.plugins.loader import DISABLED, Plugin, installed, is_disabled
from nngeo_core.plugins.table import Table

__all__ = ["PluginStatus", "Roster"]


class PluginStatus(NamedTuple):
    """One line of ``nngeo plugins``: who, what it provides, and ``"loaded"``, or what is wrong."""

    plugin: Plugin
    provides: tuple[str, ...]
    state: str


class Roster:
    """Plugins by name, with the tables that they fill. It is not locked; its registry does that.

    Attributes:
        manager: pluggy's manager, with the hooks of every loaded plugin.
        modules: The loaded plugins. Several names may share one module.
        failures: What failed plugins raised.
        blocked: The plugins that the environment disables.
        unannounced: Messages about failures of which the user was not warned yet.
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("nngeo")
        self.manager.add_hookspecs(hookspecs)
        self.modules: dict[Plugin, object] = {}
        self.failures: dict[Plugin, BaseException] = {}
        self.blocked: list[Plugin] = []
        self.unannounced: list[str] = []
        self._tables: dict[str, Table[Any, Any]] = {}

    def load_installed(self) -> None:
        """Load every installed plugin that is not disabled; one that fails is noted and provides nothing."""
        for plugin, entry in installed():
            if is_disabled(plugin):
                self.blocked.append(plugin)
                continue
            try:
                self.adopt(plugin, entry.load())
            except (Exception, SystemExit) as error:
                self.fail(plugin, error)

    def adopt(self, plugin: Plugin, module: object) -> None:
        """Take in all that the plugin provides, or raise and take in nothing."""
        if not self.owners(module):
            register_hooks(self.manager, module, str(plugin))
            try:
                contributions = ask(self.manager, module)
            except BaseException:
                self.manager.unregister(module)
                raise
            for noun, key, value, overrides in contributions:
                self._tables.setdefault(noun, Table(noun)).add(key, value, plugin, overrides)
        self.modules[plugin] = module

    def drop(self, module: object) -> None:
        """Forget a module, under every name that it was taken in by."""
        self.manager.unregister(module)
        for plugin in self.owners(module):
            del self.modules[plugin]
            self.failures.pop(plugin, None)
            for table in self._tables.values():
                table.remove(plugin)

    def fail(self, plugin: Plugin, error: BaseException) -> None:
        """Note that a plugin failed; only its first failure counts."""
        if plugin not in self.failures:
            self.failures[plugin] = error
            self.unannounced.append(f"nngeo's {plugin} {self._state(plugin)}; what it provides may be missing")

    def owners(self, module: object) -> list[Plugin]:
        """The plugins that this module was taken in as."""
        return [plugin for plugin, other in self.modules.items() if other is module]

    def table(self, noun: str) -> Table[Any, Any]:
        """The table of what `noun` says, empty if no plugin provides any."""
        return self._tables.get(noun) or Table(noun)

    def conflicts(self, plugin: Plugin) -> list[str]:
        """What other plugins provide differently, one message for each."""
        found = [table.conflict(key) for table in self._tables.values() for key in table.keys(plugin)]
        return [conflict for conflict in found if conflict]

    def status(self) -> list[PluginStatus]:
        """Every plugin, sorted by distribution and name."""
        plugins = sorted({*self.modules, *self.failures, *self.blocked})
        return [PluginStatus(plugin, self._provides(plugin), self._state(plugin)) for plugin in plugins]

    def suspects(self) -> list[str]:
        """The failed and the blocked plugins, each with its state."""
        return [f"{plugin} ({self._state(plugin)})" for plugin in sorted({*self.failures, *self.blocked})]

    def _provides(self, plugin: Plugin) -> tuple[str, ...]:
        return tuple(
            f"{table.noun} {key.__name__ if isinstance(key, type) else key}"
            for table in self._tables.values()
            for key in table.keys(plugin)
        )

    def _state(self, plugin: Plugin) -> str:
        if plugin in self.blocked:
            return f"blocked by {DISABLED}"
        if plugin in self.failures:
            error = self.failures[plugin]
            return f"failed with {type(error).__name__}: {error}"
        conflicts = self.conflicts(plugin)
        if conflicts:
            return f"in conflict: {'; '.join(conflicts)}"
        return "; ".join(["loaded", *(note for table in self._tables.values() for note in table.overridden(plugin))])
