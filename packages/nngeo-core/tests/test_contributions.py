"""What a plugin's hooks must look like and hand over, and the message when they don't."""

from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from nngeo_core.errors import PluginError
from nngeo_core.plugins import API_VERSION, hookimpl, hookspecs
from nngeo_core.plugins.contributions import ask, register_hooks


class Striped:
    kind, name = "pmat", "striped"


class Scale:
    """A module type."""


RULE = SimpleNamespace(module_types=(Scale, Striped), jacobian=lambda *call: None)


@pytest.fixture
def manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("nngeo")
    manager.add_hookspecs(hookspecs)
    return manager


def handing_over(hook: str, value: Any) -> SimpleNamespace:
    return SimpleNamespace(**{hook: hookimpl(lambda: value)})


class Hashable(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def asked(manager: pluggy.PluginManager, **hooks: Any) -> list[tuple[Any, ...]]:
    plugin = Hashable(**{name: hookimpl(hook) for name, hook in hooks.items()})
    register_hooks(manager, plugin, f"plugin {len(manager.get_plugins())}")
    return [tuple(contribution)[:3] for contribution in ask(manager, plugin)]


def test_a_rule_is_handed_over_for_each_of_its_types(manager: pluggy.PluginManager) -> None:
    found = asked(manager, nngeo_layer_rules=lambda: [RULE])
    assert found == [("layer rule", Scale, RULE), ("layer rule", Striped, RULE)]


def test_classes_are_handed_over_by_name(manager: pluggy.PluginManager) -> None:
    found = asked(
        manager,
        nngeo_representations=lambda: (Striped,),
        nngeo_generators=lambda: [Striped],
        nngeo_likelihoods=lambda: [Striped],
    )
    assert sorted(found, key=lambda contribution: contribution[0]) == [
        ("generator", "striped", Striped),
        ("likelihood", "striped", Striped),
        ("pmat representation", "striped", Striped),
    ]


def test_a_plugin_without_hooks_is_fine(manager: pluggy.PluginManager) -> None:
    assert asked(manager) == []


def test_one_plugin_is_asked_without_the_others(manager: pluggy.PluginManager) -> None:
    def broken() -> None:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        asked(manager, nngeo_generators=broken)
    assert asked(manager, nngeo_generators=lambda: [Striped]) == [("generator", "striped", Striped)]


@pytest.mark.parametrize(
    ("hook", "value", "message"),
    [
        ("nngeo_generators", None, "nngeo_generators returned None; expected a list"),
        ("nngeo_generators", Striped, "nngeo_generators returned <class .*Striped'>; expected a list"),
        ("nngeo_generators", [Striped()], "expected a class with a string attribute 'name', got 'striped'"),
        ("nngeo_generators", [Scale], "expected a class with a string attribute 'name', got None"),
        ("nngeo_representations", [Scale], "expected a class with a string attribute 'kind', got None"),
        ("nngeo_layer_rules", [Scale], r"Scale is a class; rules are handed over as instances: Scale\(\)"),
        ("nngeo_layer_rules", [Scale()], "is not a layer rule: it needs a tuple `module_types`"),
    ],
)
def test_a_wrong_result_is_refused(manager: pluggy.PluginManager, hook: str, value: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        asked(manager, **{hook: lambda: value})


def test_what_a_contribution_overrides_is_read_off_it(manager: pluggy.PluginManager) -> None:
    rule = SimpleNamespace(module_types=(Scale,), jacobian=None, overrides=("nngeo-generators",))
    plugin = Hashable(nngeo_layer_rules=hookimpl(lambda: [RULE, rule]))
    register_hooks(manager, plugin, "mine")
    assert [found.overrides for found in ask(manager, plugin)] == [(), (), ("nngeo-generators",)]


@pytest.mark.parametrize("names", ["nngeo-generators", ["nngeo-generators"], (Scale,)], ids=str)
def test_overrides_is_a_tuple_of_names(manager: pluggy.PluginManager, names: Any) -> None:
    rule = SimpleNamespace(module_types=(Scale,), jacobian=None, overrides=names)
    with pytest.raises(PluginError, match="expected a tuple of names of plugins or distributions"):
        asked(manager, nngeo_layer_rules=lambda: [rule])


@pytest.mark.parametrize("version", [2, 0, "1", None], ids=repr)
def test_a_plugin_for_another_version_of_the_hooks_is_refused(manager: pluggy.PluginManager, version: Any) -> None:
    plugin = Hashable(nngeo_api_version=version, nngeo_hook_of_that_version=hookimpl(lambda: []))
    with pytest.raises(PluginError, match=rf"for version {version!r} of nngeo's hooks, and .*nngeo-core has version 1"):
        register_hooks(manager, plugin, "mine")
    assert manager.get_plugins() == set()


def test_a_plugin_for_this_version_of_the_hooks_is_taken(manager: pluggy.PluginManager) -> None:
    register_hooks(manager, Hashable(nngeo_api_version=API_VERSION), "mine")
    assert len(manager.get_plugins()) == 1


def test_a_misspelt_hook_is_refused_with_the_closest_one(manager: pluggy.PluginManager) -> None:
    with pytest.raises(PluginError, match="'nngeo_layer_rule' is not a hook; did you mean 'nngeo_layer_rules'"):
        asked(manager, nngeo_layer_rule=lambda: [RULE])
    with pytest.raises(PluginError, match="'layer_rules' is not a hook; did you mean 'nngeo_layer_rules'"):
        asked(manager, layer_rules=lambda: [RULE])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nngeo_generators", "'nngeo_generators' is not marked: decorate it with nngeo_core.plugins.hookimpl"),
        ("nngeo_generator", "'nngeo_generator' is not a hook; did you mean 'nngeo_generators'"),
    ],
)
def test_an_unmarked_function_is_refused(manager: pluggy.PluginManager, name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        register_hooks(manager, Hashable(**{name: lambda: []}), "mine")


def test_other_names_are_left_alone(manager: pluggy.PluginManager) -> None:
    future = hookimpl(lambda: [], optionalhook=True)
    plugin = Hashable(nngeo_version="1.0", helper=len, nngeo_of_a_later_release=future)
    register_hooks(manager, plugin, "mine")
    assert ask(manager, plugin) == []


def test_a_hook_with_unknown_arguments_is_refused(manager: pluggy.PluginManager) -> None:
    with pytest.raises(pluggy.PluginValidationError, match=r"Argument\(s\) {'model'} are declared in the hookimpl"):
        asked(manager, nngeo_generators=lambda model: [])
    assert manager.get_plugins() == set()


def test_an_unhashable_plugin_is_refused(manager: pluggy.PluginManager) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        register_hooks(manager, handing_over("nngeo_generators", []), "mine")
