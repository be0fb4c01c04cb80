"""CentredAccumulator: covariances of gradients, in any parts."""

import pytest
import torch
from torch import Tensor

from nngeo_core import (
    Accumulator,
    DenseJacobian,
    IndexJacobian,
    JacobianBatch,
    KroneckerJacobian,
    KroneckerLayout,
    LayerCollection,
    LayerJacobian,
    LinearLayer,
    SumJacobian,
    UnsupportedOperationError,
)
from nngeo_core.sweep.centring import CentredAccumulator
from nngeo_core.testing import relative_error

LAYERS = LayerCollection({"a": LinearLayer(2, 1), "b": LinearLayer(1, 1)})
G = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Blocks(Accumulator):
    signed = True

    def accumulate(self, batch: JacobianBatch) -> None:
        sizes = {layer_id: layer.numel() for layer_id, layer in self.layer_collection.items()}
        rows = batch.to_dense(sizes).flatten(0, 1)
        self.add("matrix", batch.sign * rows.T @ rows)

    def finalize(self) -> Tensor:
        return self.average("matrix")


def centred(*parts: Tensor, into: CentredAccumulator | None = None) -> CentredAccumulator:
    found = CentredAccumulator(Blocks(LAYERS)) if into is None else into
    found.begin_pass(0)
    for g in parts:
        layers: dict[str, LayerJacobian] = {"a": DenseJacobian(g[None, :, :3]), "b": DenseJacobian(g[None, :, 3:])}
        found.update(JacobianBatch(layers, len(g), slice(0, 1), 1, g.dtype, g.device))
    return found


def covariance(g: Tensor) -> Tensor:
    rows = g - g.mean(0)
    return rows.T @ rows / len(g)


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [3, 4], [1, 5, 1]], ids=str)
def test_any_parts_give_the_covariance(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = centred(*G.split(sizes))
    assert found.n_examples == 7
    assert relative_error(found.finalize(), covariance(G)) <= 1e-14
    monkeypatch.setattr("nngeo_core.sweep.centring.blocks", lambda n, _: (slice(k, k + 1) for k in range(n)))
    assert relative_error(centred(*G.split(sizes)).finalize(), covariance(G)) <= 1e-14


def test_one_example_has_no_covariance() -> None:
    assert centred(G[:1]).finalize().abs().max() == 0


def test_a_large_mean_cancels_nothing() -> None:
    """In float32, the second moment minus the mean's square would have no digit left at a mean of 10,000."""
    shifted = (G * 8).round().float() / 8 + 10_000
    exact = covariance(shifted.double())
    assert relative_error(centred(*shifted.split(3)).finalize().double(), exact) <= 1e-3
    naive = (shifted.T @ shifted / 7 - torch.outer(shifted.mean(0), shifted.mean(0))).double()
    assert relative_error(naive, exact) > 1


@pytest.mark.parametrize("cut", [0, 3, 7])
def test_parts_merge(cut: int) -> None:
    first = centred(G[:cut]) if cut else centred()
    first.merge(centred(G[cut:]) if cut < 7 else centred())
    assert first.n_examples == 7
    assert relative_error(first.finalize(), covariance(G)) <= 1e-14


def test_a_merged_one_goes_on() -> None:
    first = centred(G[:2])
    first.merge(centred(G[2:4]))
    assert relative_error(centred(G[4:], into=first).finalize(), covariance(G)) <= 1e-14
    with pytest.raises(TypeError, match="centred sums merge with their own kind, got Blocks"):
        first.merge(Blocks(LAYERS))


def test_states_are_saved_and_loaded() -> None:
    loaded = centred()
    loaded.load_state_dict(centred(G[:4]).state_dict())
    assert loaded.n_examples == 4
    assert relative_error(centred(G[4:], into=loaded).finalize(), covariance(G)) <= 1e-14


def test_a_layer_that_is_not_always_called_counts_as_zero() -> None:
    found = centred(G[:4])
    found.update(JacobianBatch({"a": DenseJacobian(G[None, 4:, :3])}, 3, slice(0, 1), 1, G.dtype, G.device))
    rows = G.clone()
    rows[4:, 3:] = 0
    assert relative_error(found.finalize(), covariance(rows)) <= 1e-14


def test_what_is_not_linear_in_the_squares_is_refused() -> None:
    class Factored(Blocks):
        signed = False

    class Twice(Blocks):
        passes = 2

    for kind in (Factored, Twice):
        with pytest.raises(UnsupportedOperationError, match=f"{kind.__name__} cannot subtract the mean gradient"):
            CentredAccumulator(kind(LAYERS))
    with pytest.raises(UnsupportedOperationError, match="these have 2 directions"):
        centred().update(JacobianBatch({}, 3, slice(0, 1), 2, G.dtype, G.device))


def test_rows_of_some_examples_of_any_structure() -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    kronecker = KroneckerJacobian(draw(5, 2, 1, 3), draw(2, 5, 2, 1, 4), KroneckerLayout(1, 4, 3, has_bias=False))
    table = IndexJacobian(torch.tensor([[0, 2], [1, -1], [2, 2], [0, 0], [1, 2]]), draw(2, 5, 2, 4), 3)
    for jacobian in (kronecker, table, SumJacobian((kronecker, table)), DenseJacobian(draw(2, 5, 12))):
        for some in (slice(0, 5), slice(1, 3), slice(4, 5), slice(1, 5, 2)):
            assert relative_error(jacobian.dense_rows(some), jacobian.to_dense()[:, some]) <= 1e-14
