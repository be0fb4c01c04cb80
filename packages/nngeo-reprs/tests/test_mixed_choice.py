"""Which layers get which representation: mappings, and the automatic choice."""

from typing import Any

import pytest
from torch import nn

from nngeo_core import LayerCollection, LayerCollectionMismatchError, PluginError, PMat
from nngeo_reprs import PMatBlockDiag, PMatDense, PMatDiag, PMatKFAC, PMatMixed
from nngeo_reprs.mixed_choice import SMALL, Share, automatic, shares

MODEL = nn.Sequential()
MODEL.add_module("body", nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 300), nn.LayerNorm(300)))
MODEL.add_module("head", nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 2)))
LAYERS = LayerCollection.from_model(MODEL)


def _found(choices: Any) -> list[tuple[tuple[str, ...], type[PMat] | None]]:
    return [(share.layers, share.kind) for share in shares(MODEL, LAYERS, choices)]


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (None, [(tuple(LAYERS), None)]),
        ({None: "diag"}, [(tuple(LAYERS), PMatDiag)]),
        (
            {nn.Linear: "kfac", "head.*": "diag", None: PMatDense},
            "the key 'head.*' gets no layer .*: all of its layers, .*, go to keys before it; the first key that fits counts",
        ),
        (
            {"head.*": "dense", nn.Linear: PMatKFAC, None: "blockdiag"},
            [
                (("head.0", "head.2"), PMatDense),
                (("body.2",), PMatKFAC),
                (("body.0", "body.1", "body.3"), PMatBlockDiag),
            ],
        ),
        (
            {None: "auto", MODEL.head: "dense", "body.1.weight": PMatDiag},
            [(("head.0", "head.2"), PMatDense), (("body.1",), PMatDiag), (("body.0", "body.2", "body.3"), None)],
        ),
        ({"*": PMatMixed}, [(tuple(LAYERS), None)]),
        ({"body.*": "diag", "head.*": "mixed", None: "dense"}, [(tuple(LAYERS)[:4], PMatDiag), (tuple(LAYERS)[4:], None)]),
        ({nn.Embedding: "diag", None: "auto"}, "the key <class .*Embedding'> gets no layer of the model: it means no layer"),
        ({"heads.*": "diag", None: "auto"}, "the key 'heads.*' gets no layer of the model: it means no layer"),
    ],
)  # fmt: skip
def test_keys_in_their_order(choices: Any, expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            shares(MODEL, LAYERS, choices)
    else:
        assert _found(choices) == expected


def test_layers_that_no_key_means_are_named() -> None:
    with pytest.raises(
        LayerCollectionMismatchError, match=r"no key .* the layers \['body.1', 'body.3'\]; add the key None"
    ):
        shares(MODEL, LAYERS, {nn.Linear: "kfac", nn.Conv2d: "kfac"})


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({}, ValueError, r"asked for by a mapping such as .*; got {}"),
        (["kfac"], TypeError, r"asked for by a mapping such as .*; got \['kfac'\]"),
        ({3: "kfac"}, TypeError, "the keys .* are patterns .*; got 3"),
        ({int: "kfac"}, TypeError, "the keys .* are patterns .*; got <class 'int'>"),
        ({None: 3}, TypeError, "a concrete PMat class, a mapping .*; got 3"),
        ({None: {"head.*": "dense"}}, TypeError, "a concrete PMat class"),
        ({None: "kfak"}, PluginError, "unknown pmat representation 'kfak'.*Did you mean 'kfac'"),
    ],
)
def test_what_is_no_mapping_is_refused(choices: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        shares(MODEL, LAYERS, choices)


def test_automatic_is_kronecker_where_defined_then_blocks_then_the_diagonal() -> None:
    whole = Share(tuple(LAYERS))
    assert automatic(LAYERS, whole) == [
        Share(("body.0", "body.2", "head.0", "head.2"), PMatKFAC),
        Share(("body.1",), PMatBlockDiag),
        Share(("body.3",), PMatDiag),
    ]
    assert LAYERS["body.3"].numel() > SMALL
    assert automatic(LAYERS, whole, without_factors=["body.2", "head.2"]) == [
        Share(("body.0", "head.0"), PMatKFAC),
        Share(("body.1", "head.2"), PMatBlockDiag),
        Share(("body.2", "body.3"), PMatDiag),
    ]
    assert automatic(LAYERS, Share(("head.0",), PMatDense)) == [Share(("head.0",), PMatDense)]


def test_what_it_will_store_is_what_the_kinds_will_store() -> None:
    assert PMatMixed.stored_numbers(LAYERS) == {
        "body.0": 10 * 10 + 2 * 2,
        "body.1": 4 * 4,
        "body.2": 5 * 5 + 300 * 300,
        "body.3": 600,
        "head.0": 6 * 6 + 2 * 2,
        "head.2": 3 * 3 + 2 * 2,
    }
