"""What one plugin hands over: its hooks checked, called, and their results read."""

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import pluggy

from nngeo_core.errors import PluginError
from nngeo_core.plugins import hookspecs

__all__ = ["Contribution", "ask", "call_one", "check_rule", "register_hooks"]

HOOKS = [name for name in hookspecs.__all__ if name.startswith("nngeo_")]


class Contribution(NamedTuple):
    """One object that a plugin hands over: its table, its key there, itself, and which plugins it takes precedence over."""

    noun: str
    key: str | type[Any]
    value: Any
    overrides: tuple[str, ...] = ()


def register_hooks(manager: pluggy.PluginManager, module: object, name: str) -> None:
    """Give a plugin's hooks to the manager, or raise and leave the manager as it was.

    Args:
        manager: The manager with nngeo's hook specifications.
        module: The plugin: a module or a hashable object.
        name: The name that pluggy's own messages show.

    Raises:
        PluginError: If the plugin was written for another version of the hooks, a name that starts with ``nngeo_`` is no
            hook or is not marked, or a marked one is no hook.
        PluginValidationError: If a hook takes arguments that its specification does not have (raised by pluggy).
    """
    hash(module)  # pluggy keeps plugins in sets
    _check_version(getattr(module, "nngeo_api_version", hookspecs.API_VERSION))
    for attribute in dir(module):
        _check_attribute(manager, module, attribute)
    try:
        manager.register(module, name)
    except Exception:
        if manager.is_registered(module):  # older releases of pluggy keep what they refuse
            manager.unregister(module)
        raise


def _check_version(stated: object) -> None:
    if stated != hookspecs.API_VERSION:
        raise PluginError(
            f"it was written for version {stated!r} of nngeo's hooks, and the installed nngeo-core has version "
            f"{hookspecs.API_VERSION}: install releases of both that fit each other"
        )


def _check_attribute(manager: pluggy.PluginManager, module: object, attribute: str) -> None:
    options: Any = manager.parse_hookimpl_opts(module, attribute)
    reserved = attribute.startswith("nngeo_") and callable(getattr(module, attribute, None))
    hook = (options or {}).get("specname") or attribute
    if (options or reserved) and hook not in HOOKS and not (options or {}).get("optionalhook"):
        close = get_close_matches(hook, HOOKS, n=1, cutoff=0.0)[0]
        raise PluginError(f"{hook!r} is not a hook; did you mean {close!r}? The hooks are {', '.join(HOOKS)}")
    if reserved and options is None:
        raise PluginError(f"{attribute!r} is not marked: decorate it with nngeo_core.plugins.hookimpl")


def ask(manager: pluggy.PluginManager, module: object) -> list[Contribution]:
    """What one registered plugin hands over through its hooks.

    Raises:
        PluginError: If a hook returns something else than a list of what it is to hand over.
        Exception: Whatever the plugin raises inside its hooks.
    """
    contributions: list[Contribution] = []
    for caller in manager.get_hookcallers(module) or []:
        read = _READERS.get(caller.name)
        if read is not None:
            for value in _sequence(caller.name, call_one(manager, caller.name, module)):
                contributions.extend(found._replace(overrides=_overrides(value)) for found in read(value))
    return contributions


def call_one(manager: pluggy.PluginManager, hook: str, plugin: object, /, **arguments: object) -> Any:
    """Call a hook of this plugin alone: a list with its result, or the bare result of a hook that takes the first."""
    others = manager.get_plugins() - {plugin}
    return manager.subset_hook_caller(hook, others)(**arguments)


def _sequence(hook: str, results: list[Any]) -> Sequence[Any]:
    returned = results[0] if results else None  # pluggy drops a result that is None
    if isinstance(returned, Sequence):
        return returned
    raise PluginError(f"{hook} returned {returned!r}; expected a list, empty if there is nothing to hand over")


def check_rule(rule: Any) -> Any:
    """The rule itself, or `PluginError` if it lacks what makes a `LayerRule`."""
    if isinstance(rule, type):
        raise PluginError(f"{rule.__qualname__} is a class; rules are handed over as instances: {rule.__name__}()")
    types = getattr(rule, "module_types", None)
    if not (isinstance(types, tuple) and all(isinstance(kind, type) for kind in types) and hasattr(rule, "jacobian")):
        raise PluginError(
            f"{rule!r} is not a layer rule: it needs a tuple `module_types` of module types and `jacobian`"
        )
    return rule


def _read_rule(rule: Any) -> Iterator[Contribution]:
    for module_type in check_rule(rule).module_types:
        yield Contribution("layer rule", module_type, rule)


def _read_representation(value: Any) -> Iterator[Contribution]:
    yield Contribution(f"{_text(value, 'kind')} representation", _text(value, "name"), value)


def _read_generator(value: Any) -> Iterator[Contribution]:
    yield Contribution("generator", _text(value, "name"), value)


def _read_likelihood(value: Any) -> Iterator[Contribution]:
    yield Contribution("likelihood", _text(value, "name"), value)


def _overrides(value: Any) -> tuple[str, ...]:
    names = getattr(value, "overrides", ())
    if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise PluginError(f"{value!r} has overrides = {names!r}; expected a tuple of names of plugins or distributions")
    return names


def _text(value: Any, attribute: str) -> str:
    text = getattr(value, attribute, None)
    if isinstance(value, type) and isinstance(text, str) and text:
        return text
    raise PluginError(
        f"{value!r} cannot be registered: expected a class with a string attribute {attribute!r}, got {text!r}"
    )


_READERS: dict[str, Callable[[Any], Iterator[Contribution]]] = {
    "nngeo_generators": _read_generator,
    "nngeo_layer_rules": _read_rule,
    "nngeo_likelihoods": _read_likelihood,
    "nngeo_representations": _read_representation,
}
