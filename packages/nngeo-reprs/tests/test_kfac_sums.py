"""KFACAccumulator: sums that merge, chunk by chunk and part by part."""

import pytest
import torch

from nngeo_core import (
    DenseJacobian,
    JacobianBatch,
    KroneckerJacobian,
    KroneckerLayout,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    ShapeError,
    UnsupportedOperationError,
)
from nngeo_core.testing import relative_error
from nngeo_reprs.diag import PMatDiag
from nngeo_reprs.kfac_sums import KFACAccumulator

LAYERS = LayerCollection({"a": LinearLayer(2, 3), "b": LinearLayer(3, 1, bias=False)})
C, N, S = 4, 3, 2


def _jacobian(inputs: int, outputs: int, has_bias: bool, seed: int) -> KroneckerJacobian:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(N, S, 1, inputs, dtype=torch.float64, generator=generator)
    g = torch.randn(C, N, S, 1, outputs, dtype=torch.float64, generator=generator)
    return KroneckerJacobian(a, g, KroneckerLayout(1, outputs, inputs, has_bias))


def _batch(seed: int, directions: slice = slice(0, C), called: tuple[str, ...] = ("a", "b")) -> JacobianBatch:
    whole = {"a": _jacobian(2, 3, True, seed), "b": _jacobian(3, 1, False, seed + 1)}
    layers = {
        layer_id: KroneckerJacobian(whole[layer_id].a, whole[layer_id].g[directions], whole[layer_id].layout)
        for layer_id in called
    }
    return JacobianBatch(layers, N, directions, C, torch.float64, torch.device("cpu"))


def _sums(*batches: JacobianBatch) -> KFACAccumulator:
    sums = KFACAccumulator(LAYERS)
    for batch in batches:
        sums.update(batch)
    return sums


def _assert_same(found: KFACAccumulator, expected: KFACAccumulator) -> None:
    assert found.n_examples == expected.n_examples
    one, two = found.finalize(), expected.finalize()
    assert list(one) == list(LAYERS)
    for layer_id in LAYERS:
        assert one[layer_id].layout == two[layer_id].layout
        assert relative_error(one[layer_id].inputs, two[layer_id].inputs) <= 1e-14
        assert relative_error(one[layer_id].outputs, two[layer_id].outputs) <= 1e-14


def test_factors_by_definition() -> None:
    batch = _batch(0)
    factors = _sums(batch).finalize()["a"]
    jacobian = batch.layers["a"]
    assert isinstance(jacobian, KroneckerJacobian)
    a = torch.cat([jacobian.a[:, :, 0], torch.ones(N, S, 1, dtype=torch.float64)], 2)
    g = jacobian.g[:, :, :, 0]
    assert relative_error(factors.inputs[0], torch.einsum("nsa,nsb->ab", a, a) / N) <= 1e-14
    assert relative_error(factors.outputs[0], torch.einsum("cnsg,cnsh->gh", g, g) / S / N) <= 1e-14


@pytest.mark.parametrize("width", [1, 3])
def test_slices_of_directions_add_inputs_and_examples_once(width: int) -> None:
    slices = [_batch(0, slice(start, min(C, start + width))) for start in range(0, C, width)]
    _assert_same(_sums(*slices), _sums(_batch(0)))


def test_merged_parts_are_the_whole() -> None:
    first = _sums(_batch(0))
    first.merge(_sums(_batch(7)))
    _assert_same(first, _sums(_batch(0), _batch(7)))


def test_a_part_that_never_called_a_layer_merges_either_way() -> None:
    for batches in ((_batch(0, called=("a",)), _batch(7)), (_batch(7), _batch(0, called=("a",)))):
        first = _sums(batches[0])
        first.merge(_sums(batches[1]))
        _assert_same(first, _sums(*batches))


def test_an_empty_part_merges_and_empty_sums_take_in_another() -> None:
    empty = KFACAccumulator(LAYERS)
    empty.merge(_sums(_batch(0)))
    _assert_same(empty, _sums(_batch(0)))
    filled = _sums(_batch(0))
    filled.merge(KFACAccumulator(LAYERS))
    _assert_same(filled, _sums(_batch(0)))


@pytest.mark.parametrize("called", [("a", "b"), ("a",), ()])
def test_saved_and_loaded_sums_are_the_same(called: tuple[str, ...]) -> None:
    sums, loaded = _sums(_batch(0, called=called)), _sums(_batch(5))
    state = sums.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    loaded.load_state_dict(state)
    _assert_same(loaded, sums)
    loaded.update(_batch(7))
    sums.update(_batch(7))
    _assert_same(loaded, sums)


def test_a_layer_that_is_never_called_is_zero() -> None:
    factors = _sums(_batch(0, called=("a",))).finalize()["b"]
    assert (factors.inputs.count_nonzero(), factors.outputs.count_nonzero(), factors.layout.numel) == (0, 0, 3)
    assert factors.inputs.dtype == torch.float64


def test_a_layer_without_kronecker_structure_is_named() -> None:
    dense = JacobianBatch(
        {"b": DenseJacobian(torch.ones(C, N, 3))}, N, slice(0, C), C, torch.float32, torch.device("cpu")
    )
    with pytest.raises(
        UnsupportedOperationError, match=r"layer 'b': DenseJacobian is not a sum of Kronecker.*; use the"
    ):
        _sums(dense)


def test_other_sums_are_refused() -> None:
    sums = _sums(_batch(0))
    with pytest.raises(TypeError, match="KFACAccumulator merges with its own kind, got DiagAccumulator"):
        sums.merge(PMatDiag.accumulator(LAYERS))
    with pytest.raises(LayerCollectionMismatchError):
        sums.merge(KFACAccumulator(LayerCollection({"a": LinearLayer(2, 3)})))
    with pytest.raises(ShapeError, match="expected 'n_examples'"):
        sums.load_state_dict({"sums.a": torch.ones(1)})
