"""What is said of parameters without a rule, when a plugin may be at fault."""

from collections.abc import Callable

import pytest

import nngeo_core.layers.grouping
from nngeo_core.layers.grouping import explain_unsupported
from nngeo_core.plugins import PluginWarning, Registry

Install = Callable[..., None]

UNSUPPORTED = [("head", "Scale", ("head.weight",))]


def test_a_plugin_that_failed_is_named(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("alpha", "raise OSError('no disk')")
    monkeypatch.setattr(nngeo_core.layers.grouping, "registry", Registry())
    with pytest.warns(PluginWarning, match="plugin 'alpha'"):
        message = explain_unsupported(UNSUPPORTED)
    assert message.startswith("no layer rule for 'head' (Scale) with head.weight. The built-in rules come with")
    assert message.endswith("at fault: plugin 'alpha' of distribution alpha 1.0 (failed with OSError: no disk).")


def test_without_failures_nobody_is_accused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nngeo_core.layers.grouping, "registry", Registry())
    assert explain_unsupported(UNSUPPORTED).endswith("leaves these parameters out.")
