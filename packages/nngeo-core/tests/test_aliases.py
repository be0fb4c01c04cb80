"""Names of the original that mean a thing of another name here."""

import pytest

import nngeo_core
from nngeo_core import Layer, LinearLayer, PMat, aliases


@pytest.mark.parametrize(("alias", "meant"), [("AbstractLayer", Layer), ("PMatAbstract", PMat)])
def test_an_alias_is_the_thing_itself(alias: str, meant: type) -> None:
    assert getattr(nngeo_core, alias) is meant


def test_every_alias_is_public() -> None:
    assert set(aliases.__all__) <= set(nngeo_core.__all__)


def test_records_are_instances_of_the_originals_base_class() -> None:
    assert isinstance(LinearLayer(3, 2), nngeo_core.AbstractLayer)
