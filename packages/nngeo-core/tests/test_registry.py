"""The registry: look-ups, lazy and thread-safe loading, and plugins that come and go in a running process."""

import sys
import threading
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from nngeo_core.errors import PluginError
from nngeo_core.plugins import Plugin, PluginWarning, Registry, hookimpl

Install = Callable[..., None]


class Striped:
    kind, name = "pmat", "striped"


class StripedKernel:
    kind, name = "fmat", "striped"


class Scale:
    """A module type."""


class Rule:
    module_types = (Scale,)

    def jacobian(self) -> None:
        """Computes nothing."""


class Offering:
    """A plugin that offers what it is built with, and resolves modules by their `hint`."""

    def __init__(self, rules: Any = (), representations: Any = (), hint: str = "") -> None:
        self.rules, self.representations, self.hint = rules, representations, hint
        self.resolved = Rule()

    @hookimpl
    def nngeo_layer_rules(self) -> Any:
        return self.rules

    @hookimpl
    def nngeo_representations(self) -> Any:
        return self.representations

    @hookimpl
    def nngeo_resolve_rule(self, module: Any) -> Any:
        if module.hint == "raise":
            raise OSError(self.hint)
        return self.resolved if module.hint == self.hint else None


@pytest.fixture
def registry(install: Install) -> Registry:
    return Registry()


def test_every_table_answers(registry: Registry) -> None:
    rule = Rule()

    class Plugin:
        @hookimpl
        def nngeo_generators(self) -> Any:
            return [Striped]

        @hookimpl
        def nngeo_likelihoods(self) -> Any:
            return [StripedKernel]

    registry.register(Offering([rule], [Striped, StripedKernel]))
    registry.register(Plugin())
    assert registry.rule(Scale) is rule
    assert registry.representation("striped") is Striped
    assert registry.representation("striped", kind="fmat") is StripedKernel
    assert registry.generator("striped") is Striped
    assert registry.likelihood("striped") is StripedKernel


def test_names_are_listed_by_table_and_kind(registry: Registry) -> None:
    registry.register(Offering([Rule()], [Striped]))
    assert registry.names("representations") == ("striped",)
    assert registry.names("representations", kind="fmat") == ()
    assert registry.names("rules") == (f"{__name__}.Scale",)
    with pytest.raises(ValueError, match="no table is called 'rule'; expected one of generators, likelihoods, rep"):
        registry.names("rule")


def test_a_rule_serves_its_exact_type(registry: Registry) -> None:
    registry.register(Offering([Rule()]))
    assert registry.rule(type("Narrower", (Scale,), {})) is None


def test_an_unknown_name_lists_the_known_ones(registry: Registry) -> None:
    registry.register(Offering(representations=[Striped]))
    message = "unknown pmat representation 'stripes'; known: 'striped'. Did you mean 'striped'?"
    with pytest.raises(PluginError) as error:
        registry.representation("stripes")
    assert str(error.value).startswith(message)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("look_up", "home"),
    [
        (lambda registry: registry.representation("dense", kind="fmat"), "nngeo-ntk"),
        (lambda registry: registry.generator("hooks"), "nngeo-generators"),
        (lambda registry: registry.likelihood("regression"), "nngeo-core"),
    ],
    ids=["kernel", "generator", "likelihood"],
)
def test_an_unknown_name_says_which_distribution_to_install(
    install: Install, look_up: Callable[[Registry], type], home: str
) -> None:
    with pytest.raises(PluginError, match=rf"not installed: install {home} \(pip install {home}\)"):
        look_up(Registry())
    install(home, "", module="empty")
    with pytest.raises(PluginError, match="unknown .*; known: none.$"):
        look_up(Registry())


def test_representations_need_a_generator_too(install: Install) -> None:
    with pytest.raises(PluginError, match=r"which are not .* \(pip install nngeo-reprs nngeo-generators\)\.$"):
        Registry().representation("kfac")
    install("nngeo-reprs", "", module="empty")
    with pytest.raises(PluginError, match=r"which is not .* \(pip install nngeo-generators\)\.$"):
        Registry().representation("kfac")
    install("nngeo-generators", "", module="empty_too")
    with pytest.raises(PluginError, match="unknown .*; known: none.$"):
        Registry().representation("kfac")


def test_a_name_that_is_no_string_is_a_type_error(registry: Registry) -> None:
    with pytest.raises(TypeError, match=r"pmat representation is looked up by its name, a string; got \['kfac'\]"):
        registry.representation(["kfac"])  # type: ignore[arg-type]


def test_nothing_is_loaded_before_the_first_look_up(install: Install) -> None:
    install("lazy_plugin", "")
    registry = Registry()
    assert "lazy_plugin" not in sys.modules
    registry.names("generators")
    assert "lazy_plugin" in sys.modules


def test_the_first_load_happens_once_whichever_thread_comes_first(install: Install) -> None:
    install(
        "slow",
        """
        import time
        calls = []

        class Slow:
            kind, name = "pmat", "slow"

        @hookimpl
        def nngeo_representations():
            calls.append(1)
            time.sleep(0.1)
            return [Slow]
        """,
    )
    registry, barrier = Registry(), threading.Barrier(8)
    found: list[type] = []

    def look_up() -> None:
        barrier.wait()
        found.append(registry.representation("slow"))

    threads = [threading.Thread(target=look_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [sys.modules["slow"].Slow] * 8
    assert sys.modules["slow"].calls == [1]


def test_a_load_that_is_interrupted_starts_afresh(install: Install) -> None:
    install("alpha", "@hookimpl\ndef nngeo_generators(): return []")
    install("beta", "import sys\nif not hasattr(sys, 'tried'):\n    sys.tried = True\n    raise KeyboardInterrupt")
    registry = Registry()
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.status()
        assert [status.state for status in registry.status()] == ["loaded", "loaded"]
    finally:
        del sys.tried  # type: ignore[attr-defined]


def test_a_module_registers_and_unregisters(registry: Registry) -> None:
    module = types.ModuleType("notebook")
    module.nngeo_representations = hookimpl(lambda: [Striped])  # type: ignore[attr-defined]
    registry.register(module)
    registry.register(module)
    assert registry.status() == [(Plugin("", "notebook", ""), ("pmat representation striped",), "loaded")]
    registry.unregister(module)
    assert registry.status() == []
    with pytest.raises(PluginError, match="unknown pmat representation 'striped'"):
        registry.representation("striped")


def test_registering_a_conflicting_plugin_keeps_nothing_of_it(registry: Registry) -> None:
    registry.register(Offering(representations=[Striped]), name="old")
    rival = type("Rival", (), {"kind": "pmat", "name": "striped"})
    with pytest.raises(
        PluginError, match="'striped' is provided by plugin 'new' .* and plugin 'old' registered in this"
    ):
        registry.register(Offering([Rule()], [rival]), name="new")
    assert registry.representation("striped") is Striped
    assert registry.rule(Scale) is None
    registry.unregister("old")
    registry.register(Offering(representations=[rival]), name="new")
    assert registry.representation("striped") is rival


def test_a_plugin_registered_to_override_another_is_taken_until_it_leaves(registry: Registry) -> None:
    registry.register(Offering(representations=[Striped]), name="old")
    rival = type("Rival", (), {"kind": "pmat", "name": "striped", "overrides": ("old",)})
    registry.register(Offering(representations=[rival]), name="new")
    assert registry.representation("striped") is rival
    registry.unregister("new")
    assert registry.representation("striped") is Striped


def test_a_second_plugin_of_one_name_is_refused(registry: Registry) -> None:
    registry.register(Offering())
    with pytest.raises(
        PluginError, match=r"'Offering' registered in this process exists already: .*unregister\('Offering'\)"
    ):
        registry.register(Offering())


def test_a_plugin_with_a_wrong_hook_is_refused_at_once(registry: Registry) -> None:
    class Wrong:
        @hookimpl
        def nngeo_generators(self, model: object) -> Any:
            return []

    with pytest.raises(pluggy.PluginValidationError, match="'model'"):
        registry.register(Wrong())
    assert registry.status() == []


def test_unregistering_what_is_not_there_lists_what_is(registry: Registry) -> None:
    registry.register(Offering(), name="mine")
    with pytest.raises(
        PluginError, match="'yours' stands for 0 loaded plugins, expected one of: plugin 'mine' registered"
    ):
        registry.unregister("yours")


def test_unregistering_an_ambiguous_name_lists_both(install: Install) -> None:
    install("alpha", "", entry="same")
    install("beta", "", entry="same")
    registry = Registry()
    with pytest.raises(PluginError, match=r"'same' stands for 2 loaded plugins, .*alpha 1\.0; .*beta 1\.0"):
        registry.unregister("same")
    registry.unregister(sys.modules["alpha"])
    assert [status.plugin.distribution for status in registry.status()] == ["beta"]


def test_the_first_plugin_that_resolves_a_module_decides(registry: Registry) -> None:
    first, second = Offering(hint="x"), Offering(hint="y")
    registry.register(first, name="first")
    registry.register(second, name="second")
    assert registry.resolve_rule(SimpleNamespace(hint="x")) is first.resolved
    assert registry.resolve_rule(SimpleNamespace(hint="y")) is second.resolved
    assert registry.resolve_rule(SimpleNamespace(hint="z")) is None
    registry.unregister(first)
    assert registry.resolve_rule(SimpleNamespace(hint="x")) is None


def test_a_plugin_that_fails_to_resolve_is_warned_about_once_and_named_later(registry: Registry) -> None:
    registry.register(Offering([Rule()], hint="no disk"), name="mine")
    with pytest.warns(PluginWarning, match="'mine' registered in this process failed with OSError: no disk"):
        assert registry.resolve_rule(SimpleNamespace(hint="raise")) is None
    assert registry.resolve_rule(SimpleNamespace(hint="raise")) is None
    assert registry.rule(Scale) is not None
    expected = "One of these may be at fault: plugin 'mine' registered in this process (failed with OSError: no disk)."
    assert registry.problems() == expected
    with pytest.raises(PluginError, match="no disk"):
        registry.representation("striped")
    registry.unregister("mine")
    assert registry.problems() == ""


def test_a_resolved_rule_must_be_one(registry: Registry) -> None:
    plugin = Offering(hint="x")
    plugin.resolved = Rule  # type: ignore[assignment]
    registry.register(plugin)
    with pytest.warns(PluginWarning, match=r"Rule is a class; rules are handed over as instances: Rule\(\)"):
        assert registry.resolve_rule(SimpleNamespace(hint="x")) is None
