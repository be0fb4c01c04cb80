# mypy: disable-error-code="empty-body"
# (pluggy reads the signatures only; the bodies never run)
"""The hooks that a plugin may implement.

A plugin is a module, or any hashable object, whose functions carry the marker `hookimpl`. A distribution announces it
by an entry point of the group ``nngeo``; in a notebook, `registry.register(plugin)` does so for the running process.
Functions whose names start with ``nngeo_`` must be hooks, so that a misspelt one is refused instead of being ignored.
A plugin that states ``nngeo_api_version`` is refused by a release of nngeo-core whose `API_VERSION` is another.

The first four hooks hand over a list of objects, empty if there is nothing to offer. They are called once, when plugins
are loaded, and must be cheap: nothing numeric goes through them. Two plugins that hand over different objects of one name,
or different rules for one module type, are in conflict, and neither is used for it, unless the object of one has an
attribute ``overrides``: a tuple of the plugins or distributions that it takes precedence over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from nngeo_core.layers.rule import LayerRule

__all__ = [
    "API_VERSION",
    "hookimpl",
    "nngeo_generators",
    "nngeo_layer_rules",
    "nngeo_likelihoods",
    "nngeo_representations",
    "nngeo_resolve_rule",
]

API_VERSION = 1
"""What a plugin may state as its ``nngeo_api_version``; it grows when hooks, or what they hand over, change their meaning."""

hookspec = pluggy.HookspecMarker("nngeo")

hookimpl = pluggy.HookimplMarker("nngeo")
"""Marks a function of a plugin as an implementation of the hook of the same name."""


@hookspec
def nngeo_layer_rules() -> Sequence[LayerRule]:
    """Rules for layer types: instances, each serving exactly the types in its `module_types`.

    Returns:
        Instances of `LayerRule`.

    Example:
        >>> from types import SimpleNamespace
        >>> from nngeo_core.plugins import Registry, hookimpl
        >>> class Scale: ...
        >>> rule = SimpleNamespace(module_types=(Scale,), jacobian=lambda *call: None)
        >>> class Plugin:
        ...     @hookimpl
        ...     def nngeo_layer_rules(self):
        ...         return [rule]
        >>> registry = Registry()
        >>> registry.register(Plugin())
        >>> registry.rule(Scale) is rule
        True
    """


@hookspec
def nngeo_representations() -> Sequence[type[Any]]:
    """Representations of matrices and maps: classes with the attributes `kind` (such as ``"pmat"``) and `name`.

    Returns:
        Classes; names are told apart within a kind, so that each kind may have its ``"dense"``.

    Example:
        >>> from nngeo_core.plugins import Registry, hookimpl
        >>> class Striped:
        ...     kind, name = "pmat", "striped"
        >>> class Plugin:
        ...     @hookimpl
        ...     def nngeo_representations(self):
        ...         return [Striped]
        >>> registry = Registry()
        >>> registry.register(Plugin())
        >>> registry.representation("striped") is Striped
        True
    """


@hookspec
def nngeo_generators() -> Sequence[type[Any]]:
    """Generators of Jacobians: classes with the attribute `name`.

    Returns:
        Subclasses of `Generator`.

    Example:
        >>> from nngeo_core.plugins import Registry, hookimpl
        >>> class Symbolic:
        ...     name = "symbolic"
        >>> class Plugin:
        ...     @hookimpl
        ...     def nngeo_generators(self):
        ...         return [Symbolic]
        >>> registry = Registry()
        >>> registry.register(Plugin())
        >>> registry.generator("symbolic") is Symbolic
        True
    """


@hookspec
def nngeo_likelihoods() -> Sequence[type[Any]]:
    """Likelihoods: classes with the attribute `name`, which users pass as `variant`.

    Returns:
        Subclasses of `Likelihood`.

    Example:
        >>> from nngeo_core.plugins import Registry, hookimpl
        >>> class Laplace:
        ...     name = "laplace"
        >>> class Plugin:
        ...     @hookimpl
        ...     def nngeo_likelihoods(self):
        ...         return [Laplace]
        >>> registry = Registry()
        >>> registry.register(Plugin())
        >>> registry.likelihood("laplace") is Laplace
        True
    """


@hookspec(firstresult=True)
def nngeo_resolve_rule(module: nn.Module) -> LayerRule | None:
    """A rule for a module that no table can name, asked last; the first plugin with an answer decides.

    Unlike the other hooks this one is called whenever a LayerCollection meets such a module. To refuse a configuration,
    return a rule whose `check` raises; an exception raised here counts as a failure of the plugin.

    Args:
        module: The module whose type no rule serves.

    Returns:
        A rule for exactly this module, or None to decline.

    Example:
        >>> from types import SimpleNamespace
        >>> from nngeo_core.plugins import Registry, hookimpl
        >>> rule = SimpleNamespace(module_types=(), jacobian=lambda *call: None)
        >>> class Plugin:
        ...     @hookimpl
        ...     def nngeo_resolve_rule(self, module):
        ...         return rule if hasattr(module, "scale") else None
        >>> registry = Registry()
        >>> registry.register(Plugin())
        >>> registry.resolve_rule(SimpleNamespace(scale=2.0)) is rule
        True
    """
