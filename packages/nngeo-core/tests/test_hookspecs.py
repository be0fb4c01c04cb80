"""The hook specifications: documented, typed, and read by pluggy as they are meant."""

import inspect

import pluggy
import pytest

from nngeo_core.plugins import hookimpl, hookspecs

HOOKS = [name for name in hookspecs.__all__ if name.startswith("nngeo_")]


@pytest.fixture
def manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("nngeo")
    manager.add_hookspecs(hookspecs)
    return manager


def test_pluggy_reads_exactly_the_public_hooks(manager: pluggy.PluginManager) -> None:
    marked = [name for name in dir(hookspecs) if manager.parse_hookspec_opts(hookspecs, name) is not None]
    assert marked == sorted(HOOKS)
    assert len(HOOKS) == 5


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_an_example(name: str) -> None:
    documentation = inspect.getdoc(getattr(hookspecs, name))
    assert documentation is not None
    for section in ("Returns:", "Example:", ">>> "):
        assert section in documentation


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_typed(name: str) -> None:
    signature = inspect.signature(getattr(hookspecs, name))
    annotations = [parameter.annotation for parameter in signature.parameters.values()]
    assert inspect.Signature.empty not in [*annotations, signature.return_annotation]


def test_only_resolving_a_rule_takes_an_argument_and_the_first_result(manager: pluggy.PluginManager) -> None:
    takes_first = [name for name in HOOKS if manager.parse_hookspec_opts(hookspecs, name)["firstresult"]]
    takes_arguments = [name for name in HOOKS if inspect.signature(getattr(hookspecs, name)).parameters]
    assert takes_first == takes_arguments == ["nngeo_resolve_rule"]


def test_the_marker_belongs_to_the_project() -> None:
    assert hookimpl.project_name == "nngeo"
