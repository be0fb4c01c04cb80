"""Every way in which an installed distribution can be broken: noted, warned about, and harmless to the others."""

import warnings
from collections.abc import Callable

import pytest

from nngeo_core.errors import PluginError
from nngeo_core.plugins import Plugin, PluginWarning, Registry
from nngeo_core.plugins.roster import Roster

Install = Callable[..., None]

SOUND = """
class Striped:
    kind, name = "pmat", "striped"

@hookimpl
def nngeo_representations():
    return [Striped]
"""

BROKEN = {
    "import": (
        "import a_module_that_is_not_there",
        "ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
    ),
    "exit": ("raise SystemExit('no licence')", "SystemExit: no licence"),
    "syntax": ("def (:", "SyntaxError: invalid syntax"),
    "signature": ("@hookimpl\ndef nngeo_generators(model): return []", r"PluginValidationError: Plugin .*alpha"),
    "misspelt": ("@hookimpl\ndef nngeo_generater(): return []", "PluginError: 'nngeo_generater' is not a hook"),
    "unmarked": ("def nngeo_generators(): return []", "PluginError: 'nngeo_generators' is not marked"),
    "raises": ("@hookimpl\ndef nngeo_generators(): return 1 / 0", "ZeroDivisionError: division by zero"),
    "version": (
        "nngeo_api_version = 2\n@hookimpl\ndef nngeo_kernels(): return []",
        "PluginError: it was written for version 2 of nngeo's hooks, and the installed nngeo-core has version 1",
    ),
    "returns": ("@hookimpl\ndef nngeo_generators(): return 7", "PluginError: nngeo_generators returned 7"),
}


@pytest.mark.parametrize(("code", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_warned_about_once_named_in_later_errors_and_harms_nothing(
    install: Install, code: str, message: str
) -> None:
    install("alpha", code, version="0.3", entry="first")
    install("beta", SOUND)
    registry = Registry()
    with pytest.warns(PluginWarning, match=f"plugin 'first' of distribution alpha 0.3 failed with {message}") as caught:
        assert registry.representation("striped").__name__ == "Striped"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.representation("striped").__name__ == "Striped"
        with pytest.raises(PluginError, match=f"may be at fault: plugin 'first' .* \\(failed with {message}") as error:
            registry.generator("first")
    assert type(error.value.__cause__).__name__ == message.partition(":")[0]


def test_a_plugin_that_fails_late_leaves_nothing_behind(install: Install) -> None:
    late = (
        "\n@hookimpl\ndef nngeo_resolve_rule(): return None\n@hookimpl\ndef nngeo_generators(): raise OSError('late')"
    )
    install("alpha", SOUND + late)
    roster = Roster()
    roster.load_installed()
    assert roster.modules == {}
    assert roster.manager.get_plugins() == set()
    assert roster.table("pmat representation").keys() == []
    assert [status.state for status in roster.status()] == ["failed with OSError: late"]


def test_asked_for_by_name_a_broken_plugin_is_the_cause_among_several(install: Install) -> None:
    install("alpha", "raise OSError('alpha')")
    install("beta", "raise KeyError('beta')", entry="second")
    registry = Registry()
    with pytest.warns(PluginWarning):
        registry.status()
    for name, cause in [("second", KeyError), ("beta", KeyError), ("alpha", OSError)]:
        with pytest.raises(PluginError, match="plugin 'alpha' .*plugin 'second'") as error:
            registry.representation(name)
        assert type(error.value.__cause__) is cause


def test_when_warnings_are_errors_each_is_raised_once_and_look_ups_go_on(install: Install) -> None:
    install("alpha", "raise OSError('alpha')")
    install("beta", "raise KeyError('beta')")
    install("gamma", SOUND)
    registry = Registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ["alpha", "beta"]:
            with pytest.raises(PluginWarning, match=f"plugin '{name}'"):
                registry.representation("striped")
        assert registry.representation("striped").__name__ == "Striped"


def test_a_disabled_plugin_is_not_imported_and_is_named_in_later_errors(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("alpha", "raise SystemExit('imported')")
    monkeypatch.setenv("NNGEO_DISABLED_PLUGINS", "alpha")
    registry = Registry()
    assert [tuple(status) for status in registry.status()] == [
        (Plugin("alpha", "alpha", "1.0"), (), "blocked by NNGEO_DISABLED_PLUGINS")
    ]
    with pytest.raises(PluginError, match=r"at fault: plugin 'alpha' .*1\.0 \(blocked by NNGEO_DISABLED_PLUGINS\)"):
        registry.representation("striped")


@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_two_distributions_with_one_name_conflict_whatever_the_order(
    install: Install, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    for distribution in sorted(["alpha", "beta"], reverse=first == "beta"):
        install(distribution, SOUND, entry="same", folder=distribution)
    message = (
        "'striped' is provided by plugin 'same' of distribution alpha 1.0 and plugin 'same' of distribution beta 1.0"
    )
    registry = Registry()
    with pytest.raises(PluginError, match=message):
        registry.representation("striped")
    assert all(f"in conflict: pmat representation {message}" in status.state for status in registry.status())
    monkeypatch.setenv("NNGEO_DISABLED_PLUGINS", "alpha")
    assert Registry().representation("striped").__module__ == "beta"


RULE = """
class Rule:
    module_types = ({types},)
    jacobian = None
    overrides = {overrides}

@hookimpl
def nngeo_layer_rules():
    return [Rule()]
"""


@pytest.mark.parametrize("overriding", ["alpha", "beta"])
def test_a_rule_that_overrides_another_decides_whatever_the_order(install: Install, overriding: str) -> None:
    for distribution, other in [("beta", "alpha"), ("alpha", "beta")]:
        install(
            distribution,
            RULE.format(types="int", overrides=(other,) if distribution == overriding else ()),
            folder=distribution,
        )
    registry = Registry()
    assert type(registry.rule(int)).__module__ == overriding
    assert sorted(status.state for status in registry.status()) == [
        "loaded",
        f"loaded; layer rule builtins.int overridden by plugin '{overriding}' of distribution {overriding} 1.0",
    ]


def test_conflicting_rules_refuse_their_type_alone(install: Install) -> None:
    install("alpha", RULE.format(types="int, float", overrides=()))
    install("beta", RULE.format(types="int, str", overrides=()))
    registry = Registry()
    with pytest.raises(PluginError, match=r"layer rule builtins.int is provided by .*alpha 1\.0 and .*beta 1\.0"):
        registry.rule(int)
    assert type(registry.rule(float)).__module__ == "alpha"
    assert type(registry.rule(str)).__module__ == "beta"


def test_one_module_announced_twice_is_no_conflict(install: Install) -> None:
    install("alpha", SOUND)
    install("beta", "", entry="renamed")
    roster = Roster()
    roster.load_installed()
    module = roster.modules[Plugin("alpha", "alpha", "1.0")]
    roster.adopt(Plugin("gamma", "again", "1.0"), module)
    assert [status.state for status in roster.status()] == ["loaded"] * 3
    roster.drop(module)
    assert [plugin.distribution for plugin in roster.modules] == ["beta"]


def test_a_plugin_that_looks_something_up_while_loading_fails_alone(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    monkeypatch.setattr("nngeo_core.plugins.registry", registry)
    install("alpha", "from nngeo_core.plugins import registry\nregistry.names('generators')")
    install("beta", SOUND)
    with pytest.warns(PluginWarning, match="plugin 'alpha' .* looked something up while plugins are being loaded"):
        assert registry.representation("striped").__module__ == "beta"
