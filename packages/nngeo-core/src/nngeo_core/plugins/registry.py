"""The registry: what a name or a module type stands for, among everything that plugins provide."""

from __future__ import annotations

import threading
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

from nngeo_core.errors import PluginError
from nngeo_core.plugins.contributions import call_one, check_rule
from nngeo_core.plugins.loader import Plugin, PluginWarning
from nngeo_core.plugins.roster import PluginStatus, Roster
from nngeo_core.plugins.table import label

if TYPE_CHECKING:
    from torch import nn

    from nngeo_core.layers.rule import LayerRule

__all__ = ["Registry", "registry"]

_NOUNS = {"generators": "generator", "likelihoods": "likelihood", "rules": "layer rule"}
_HOMES = {
    "generator": ["nngeo-generators"],
    "likelihood": ["nngeo-core"],
    "pmat representation": ["nngeo-reprs", "nngeo-generators"],  # which are of no use without a generator
}


class Registry:
    """Every rule, representation, generator and likelihood that installed or registered plugins provide.

    Entry points are loaded at the first look-up, once, whichever thread comes first. The library asks
    `nngeo_core.plugins.registry`; other instances are independent of it.

    Example:
        >>> from nngeo_core.plugins import Registry, hookimpl
        >>> class Striped:
        ...     kind, name = "pmat", "striped"
        >>> class Plugin:
        ...     @hookimpl
        ...     def nngeo_representations(self):
        ...         return [Striped]
        >>> registry = Registry()
        >>> registry.register(Plugin(), name="stripes")
        >>> registry.representation("striped") is Striped
        True
        >>> registry.unregister("stripes")
        >>> "striped" in registry.names("representations")
        False
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loading = False
        self._roster: Roster | None = None

    def rule(self, module_type: type[nn.Module]) -> LayerRule | None:
        """The rule registered for exactly this type, not for a base of it; None if there is none.

        Raises:
            PluginError: If two plugins register different rules for the type and neither overrides the other.
        """
        rule: LayerRule | None = self._ready().table("layer rule").find(module_type)
        return rule

    def resolve_rule(self, module: nn.Module) -> LayerRule | None:
        """The first rule that a plugin's `nngeo_resolve_rule` offers for this module; None if all decline."""
        roster = self._ready()
        for implementation in reversed(roster.manager.hook.nngeo_resolve_rule.get_hookimpls()):
            rule = self._resolve(roster, implementation.plugin, module)
            if rule is not None:
                return rule
        return None

    def representation(self, name: str, kind: str = "pmat") -> type[Any]:
        """The representation of this name and kind.

        Raises:
            PluginError: If the name is unknown, with the known ones, or two plugins conflict over it.
        """
        return self._named(f"{kind} representation", name)

    def generator(self, name: str) -> type[Any]:
        """The generator of this name; raises as `representation` does."""
        return self._named("generator", name)

    def likelihood(self, name: str) -> type[Any]:
        """The likelihood of this name; raises as `representation` does."""
        return self._named("likelihood", name)

    def names(self, table: str, kind: str = "pmat") -> tuple[str, ...]:
        """The names known in a table, sorted.

        Args:
            table: ``"representations"`` (those of the given kind), ``"generators"``, ``"likelihoods"``, or ``"rules"``
                (full names of module types).
            kind: The kind of representations.

        Raises:
            ValueError: If there is no such table.
        """
        nouns = {**_NOUNS, "representations": f"{kind} representation"}
        if table not in nouns:
            raise ValueError(f"no table is called {table!r}; expected one of {', '.join(sorted(nouns))}")
        return tuple(map(label, self._ready().table(nouns[table]).keys()))

    def register(self, plugin: object, name: str | None = None) -> None:
        """Register a module or object with hooks in this process, as an installed plugin would be; twice is once.

        Args:
            plugin: Its functions marked with `hookimpl` are the hooks.
            name: What messages call it; by default its own name, or its class's.

        Raises:
            PluginError: If the name is taken, or it conflicts with another plugin; nothing of it is kept then.
            PluginValidationError: If a hook's signature is wrong (raised by pluggy).
        """
        roster = self._ready()
        identity = Plugin("", name or str(getattr(plugin, "__name__", type(plugin).__name__)), "")
        with self._lock:
            if roster.owners(plugin):
                return
            if identity in roster.modules:
                raise PluginError(
                    f"{identity} exists already: pass another name, or call unregister({identity.name!r}) first"
                )
            roster.adopt(identity, plugin)
            conflicts = roster.conflicts(identity)
            if conflicts:
                roster.drop(plugin)
                raise PluginError("; ".join(conflicts))

    def unregister(self, plugin: object) -> None:
        """Take a plugin out, with all that it provides.

        Args:
            plugin: The module or object itself, or the plugin's name.

        Raises:
            PluginError: If no loaded plugin is meant, or several are.
        """
        roster = self._ready()
        with self._lock:
            meant = {one: module for one, module in roster.modules.items() if module is plugin or one.name == plugin}
            if len({id(module) for module in meant.values()}) != 1:
                known = "; ".join(map(str, meant or roster.modules)) or "none"
                raise PluginError(f"{plugin!r} stands for {len(meant)} loaded plugins, expected one of: {known}")
            roster.drop(next(iter(meant.values())))

    def status(self) -> list[PluginStatus]:
        """Every plugin with what it provides and its state, sorted by distribution and name."""
        roster = self._ready()
        with self._lock:
            return roster.status()

    def problems(self) -> str:
        """A sentence that names every failed or blocked plugin, for errors they may have caused; empty if none."""
        suspects = self._ready().suspects()
        return f"One of these may be at fault: {'; '.join(suspects)}." if suspects else ""

    def _ready(self) -> Roster:
        roster = self._roster or self._load()
        if roster.unannounced:
            self._announce(roster)
        return roster

    def _load(self) -> Roster:
        with self._lock:
            if self._loading:
                raise PluginError("a plugin looked something up while plugins are being loaded; do it later, when used")
            if self._roster is None:
                self._loading = True
                try:
                    roster = Roster()
                    roster.load_installed()
                    self._roster = roster
                finally:
                    self._loading = False
            return self._roster

    def _announce(self, roster: Roster) -> None:
        with self._lock:
            while roster.unannounced:
                warnings.warn(roster.unannounced.pop(0), PluginWarning, stacklevel=4)

    def _resolve(self, roster: Roster, hooks: object, module: nn.Module) -> LayerRule | None:
        try:
            rule = call_one(roster.manager, "nngeo_resolve_rule", hooks, module=module)
            return None if rule is None else check_rule(rule)
        except Exception as error:
            for plugin in roster.owners(hooks):
                roster.fail(plugin, error)
            self._announce(roster)
            return None

    def _named(self, noun: str, name: str) -> type[Any]:
        if not isinstance(name, str):
            raise TypeError(f"a {noun} is looked up by its name, a string; got {name!r}")
        table = self._ready().table(noun)
        found: type[Any] | None = table.find(name)
        if found is None:
            parts = (table.unknown(name), _missing_homes(noun), self.problems())
            raise PluginError(" ".join(part for part in parts if part)) from self._cause(name)
        return found

    def _cause(self, name: str) -> BaseException | None:
        """The failure of the plugin or distribution of this name, else any failure."""
        failures = self._ready().failures
        named = [error for plugin, error in failures.items() if name in (plugin.name, plugin.distribution)]
        return next(iter([*named, *failures.values()]), None)


def _missing_homes(noun: str) -> str:
    """Which of nngeo's own distributions hold such objects, and what these need, if not installed."""
    homes = _HOMES.get(noun, ["nngeo-ntk"])  # the other kinds of representations live in function space
    missing = [home for home in homes if not _is_installed(home)]
    if not missing:
        return ""
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"nngeo's own come with {' and '.join(missing)}, which {verb} not installed: install {' and '.join(missing)} "
        f"(pip install {' '.join(missing)})."
    )


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


registry = Registry()
"""The one that the verbs look names up in; plugins are loaded into it at the first look-up."""
