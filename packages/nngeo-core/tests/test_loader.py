"""Finding installed plugins: sorted, whatever their order on the path, and disabled by name."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nngeo_core.plugins import Plugin
from nngeo_core.plugins.loader import installed, is_disabled

Install = Callable[..., None]


def test_plugins_are_sorted_by_distribution_and_name(install: Install) -> None:
    install("zeta", "", entry="a")
    install("alpha", "", entry="z", folder="other")
    install("middle", "", version="2.1", entry="m")
    expected = [Plugin("alpha", "z", "1.0"), Plugin("middle", "m", "2.1"), Plugin("zeta", "a", "1.0")]
    assert [plugin for plugin, _ in installed()] == expected
    sys.path.reverse()
    assert [plugin for plugin, _ in installed()] == expected


def test_two_distributions_may_use_one_entry_point_name(install: Install) -> None:
    install("alpha", "", entry="rules")
    install("beta", "", entry="rules")
    assert [plugin for plugin, _ in installed()] == [Plugin("alpha", "rules", "1.0"), Plugin("beta", "rules", "1.0")]


def test_finding_imports_nothing(install: Install) -> None:
    install("loud", "raise SystemExit('imported')")
    assert [entry.value for _, entry in installed()] == ["loud"]
    assert "loud" not in sys.modules


def test_other_entry_point_groups_are_left_alone(install: Install, tmp_path: Path) -> None:
    install("alpha", "")
    points = next(tmp_path.rglob("entry_points.txt"))
    points.write_text("[console_scripts]\nalpha = alpha:main\n[nngeo.other]\nalpha = alpha\n")
    assert installed() == []


def test_a_distribution_without_metadata_is_still_found(install: Install, tmp_path: Path) -> None:
    install("alpha", "")
    next(tmp_path.rglob("METADATA")).unlink()
    assert [plugin for plugin, _ in installed()] == [Plugin("unknown", "alpha", "unknown")]


@pytest.mark.parametrize("value", ["stripes", "nngeo-striped", "other, NNGeo_Striped ,", "nngeo.striped"])
def test_a_plugin_is_disabled_by_its_name_or_its_distributions(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NNGEO_DISABLED_PLUGINS", value)
    assert is_disabled(Plugin("nngeo-striped", "stripes", "1.0"))
    assert not is_disabled(Plugin("nngeo", "striped", "1.0"))


def test_a_plugin_of_this_process_has_no_distribution_to_go_by() -> None:
    assert not Plugin("", "mine", "").is_among(["", " "])
    assert Plugin("", "mine", "").is_among(["MINE"])


@pytest.mark.parametrize("value", ["", ",", " , "])
def test_an_empty_list_disables_nothing(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NNGEO_DISABLED_PLUGINS", value)
    assert not is_disabled(Plugin("nngeo-striped", "stripes", "1.0"))


def test_a_plugin_says_where_it_comes_from() -> None:
    assert str(Plugin("nngeo-striped", "stripes", "1.0")) == "plugin 'stripes' of distribution nngeo-striped 1.0"
    assert str(Plugin("", "stripes", "")) == "plugin 'stripes' registered in this process"
