"""Interleaving: vectors cut into parts whose layers alternate, and put together again."""

import pytest
import torch

from nngeo_core import LayerCollection, LayerCollectionMismatchError, LinearLayer
from nngeo_reprs.interleaving import Interleaving

WHOLE = LayerCollection(
    {"a": LinearLayer(2, 1, bias=False), "b": LinearLayer(1, 1), "c": LinearLayer(3, 1, bias=False)}
)
BACKWARDS = LayerCollection({"c": LinearLayer(3, 1, bias=False), "a": LinearLayer(2, 1, bias=False)})


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7), (0, 7)], ids=str)
def test_what_is_cut_and_joined_is_the_same(shape: tuple[int, ...]) -> None:
    places, v = Interleaving(WHOLE, [BACKWARDS, WHOLE.restricted("b")]), torch.randn(shape)
    outer, inner = places.split(v)
    assert torch.equal(outer, v[..., [4, 5, 6, 0, 1]])
    assert torch.equal(inner, v[..., [2, 3]])
    assert torch.equal(places.join([outer, inner]), v)


def test_blocks_and_rows_go_to_their_places() -> None:
    places, block = Interleaving(WHOLE, [BACKWARDS, WHOLE.restricted("b")]), torch.randn(5, 5)
    order = torch.tensor([4, 5, 6, 0, 1])
    whole = places.join_blocks([block, torch.ones(2, 2)])
    assert torch.equal(whole[order][:, order], block)
    assert torch.equal(whole[2:4, 2:4], torch.ones(2, 2))
    assert whole.count_nonzero() == 29
    rows = places.join_rows(0, block[:3])
    assert torch.equal(rows[:, order], block[:3])
    assert not rows[:, 2:4].any()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["ab"], r"got \[\] twice and \['c'\] not at all"),
        (["ab", "bc"], r"got \['b'\] twice and \[\] not at all"),
        (["abc", None], "layer 'c' .* is not in a collection"),
    ],
)
def test_each_layer_is_in_one_part(parts: list[str | None], message: str) -> None:
    stranger = LayerCollection({"c": LinearLayer(4, 1)})
    held = [stranger if part is None else WHOLE.restricted(part) for part in parts]
    with pytest.raises(LayerCollectionMismatchError, match=message):
        Interleaving(WHOLE, held)
