"""Table: claims, conflicts, and what the messages say."""

import pytest

from nngeo_core.errors import PluginError
from nngeo_core.plugins import Plugin, Table

ONE = Plugin("one", "entry", "1.0")
TWO = Plugin("two", "entry", "2.0")


@pytest.fixture
def table() -> Table[object, object]:
    table = Table[object, object]("colour")
    table.add("red", "#f00", ONE)
    table.add("blue", "#00f", TWO)
    return table


def test_a_value_is_found_by_its_key(table: Table[object, object]) -> None:
    assert (table.find("red"), table.find("green")) == ("#f00", None)


def test_keys_are_sorted_and_told_apart_by_owner(table: Table[object, object]) -> None:
    assert table.keys() == ["blue", "red"]
    assert table.keys(TWO) == ["blue"]


def test_a_conflict_refuses_the_key_and_names_both_distributions_whoever_came_first() -> None:
    messages = []
    for owners in [(ONE, TWO), (TWO, ONE)]:
        table = Table[str, object]("colour")
        for owner in owners:
            table.add("red", object(), owner)
        with pytest.raises(PluginError, match="of distribution one 1.0 and .* of distribution two 2.0") as caught:
            table.find("red")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("colour 'red' is provided by plugin 'entry' of distribution one 1.0 and")
    assert "NNGEO_DISABLED_PLUGINS" in messages[0]


def test_removing_one_owner_settles_a_conflict(table: Table[object, object]) -> None:
    table.add("red", "#e00", TWO)
    table.remove(ONE)
    assert table.find("red") == "#e00"
    table.remove(TWO)
    assert table.keys() == []


def test_the_same_object_twice_is_no_conflict(table: Table[object, object]) -> None:
    shade = object()
    table.add("grey", shade, ONE)
    table.add("grey", shade, TWO)
    assert table.find("grey") is shade
    assert table.conflict("grey") == ""
    table.remove(ONE)
    assert table.find("grey") is shade


THREE = Plugin("three", "entry-of-three", "3.0")


@pytest.mark.parametrize("name", ["one", "ONE", "entry"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["last", "first"])
def test_a_claim_that_overrides_another_by_its_name_stands(name: str, order: tuple[int, int]) -> None:
    table = Table[str, str]("colour")
    claims = [("#f00", ONE, ()), ("#e00", THREE, (name,))]
    for k in order:
        table.add("red", *claims[k])
    assert (table.find("red"), table.conflict("red")) == ("#e00", "")
    assert table.overridden(ONE) == ["colour 'red' overridden by plugin 'entry-of-three' of distribution three 3.0"]
    assert table.overridden(THREE) == []
    table.remove(THREE)
    assert table.find("red") == "#f00"


def test_claims_that_override_each_other_are_in_conflict() -> None:
    table = Table[str, str]("colour")
    table.add("red", "#f00", ONE, ("two",))
    table.add("red", "#e00", TWO, ("one",))
    table.add("red", "#d00", THREE, ())
    with pytest.raises(PluginError, match="distribution one 1.0 and .* two 2.0 and .* three 3.0, with different"):
        table.find("red")
    table.add("blue", "#00f", ONE, ("two",))
    table.add("blue", "#00e", TWO, ("three",))
    table.add("blue", "#00d", THREE, ("one",))
    with pytest.raises(PluginError, match="one 1.0 and .* two 2.0 and .* three 3.0, with different"):
        table.find("blue")


def test_two_claims_that_override_a_third_are_in_conflict_with_each_other() -> None:
    table = Table[str, str]("colour")
    table.add("red", "#f00", ONE)
    table.add("red", "#e00", TWO, ("one",))
    table.add("red", "#d00", THREE, ("one",))
    with pytest.raises(PluginError) as error:
        table.find("red")
    assert "distribution one" not in str(error.value)
    assert str(error.value).endswith("or let its object say `overrides = (...)` with the other's name")


def test_an_equal_but_different_object_is_a_conflict(table: Table[object, object]) -> None:
    table.add("list", [1], ONE)
    table.add("list", [1], TWO)
    with pytest.raises(PluginError, match="with different objects"):
        table.find("list")


def test_the_message_for_an_unknown_key_lists_the_known_ones_and_the_closest(table: Table[object, object]) -> None:
    assert table.unknown("rod") == "unknown colour 'rod'; known: 'blue', 'red'. Did you mean 'red'?"
    assert table.unknown("xyzzy") == "unknown colour 'xyzzy'; known: 'blue', 'red'."
    assert Table[str, int]("number").unknown("one") == "unknown number 'one'; known: none."


def test_types_go_by_their_full_name() -> None:
    table = Table[type, int]("rule")
    table.add(Plugin, 1, ONE)
    table.add(Plugin, 2, TWO)
    assert table.conflict(Plugin).startswith("rule nngeo_core.plugins.loader.Plugin is provided by ")
