"""PMatBlockDiag: each layer's block of the Fisher matrix."""

import pytest
import torch
from torch import Tensor

from nngeo_core import (
    FIM,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    NonFiniteError,
    NotPositiveDefiniteError,
    PMat,
    ShapeError,
)
from nngeo_core.testing import Case, PMatAlgebraContract, PMatContract, block_diagonal
from nngeo_core.testing.models import mlp
from nngeo_reprs import PMatBlockDiag, PMatDense

LAYERS = LayerCollection({"a": LinearLayer(2, 1, bias=False), "b": LinearLayer(1, 1, bias=False)})


class TestPMatBlockDiag(PMatContract):
    representation = PMatBlockDiag

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        return block_diagonal(super().dense_value(case, layers, variant), [layer.numel() for layer in layers.values()])


class TestPMatBlockDiagFromData(PMatAlgebraContract):
    def build(self, layers: LayerCollection, seed: int) -> PMat:
        generator, blocks = torch.Generator().manual_seed(seed), {}
        for layer_id, layer in layers.items():
            rows = torch.randn(2, layer.numel(), dtype=torch.float64, generator=generator)
            blocks[layer_id] = rows.T @ rows
        return PMatBlockDiag(data=blocks, layer_collection=layers)


def test_made_from_a_dense_matrix_it_forgets_what_is_between_layers() -> None:
    case = mlp()
    dense, blocks = FIM(case.model, case.inputs, [PMatDense, PMatBlockDiag])
    found = dense.convert("blockdiag")
    assert torch.allclose(found.get_dense_tensor(), blocks.get_dense_tensor(), rtol=1e-12)
    assert (found.n_examples, found.likelihood) == (dense.n_examples, "classif_logits")
    assert torch.equal(blocks.convert("dense").get_dense_tensor(), blocks.get_dense_tensor())
    assert blocks.convert(PMatBlockDiag) is blocks


def test_a_singular_block_is_named() -> None:
    matrix = PMatBlockDiag(data={"a": torch.ones(2, 2).double(), "b": torch.eye(1).double()}, layer_collection=LAYERS)
    with pytest.raises(NotPositiveDefiniteError, match=r"the block of layer 'a' \+ 0 I is singular"):
        matrix.solve(torch.ones(1, 3, dtype=torch.float64), regul=0)
    with pytest.raises(NotPositiveDefiniteError, match="negative eigenvalue -4"):
        (-2 * matrix).sqrt()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.ones(3, 3), LayerCollectionMismatchError, "a mapping with the layers"),
        ({"b": torch.eye(1), "a": torch.eye(2)}, LayerCollectionMismatchError, r"got \['b', 'a'\]"),
        ({"a": torch.eye(1), "b": torch.eye(1)}, ShapeError, r"layer 'a': .* shape \(2, 2\), got \(1, 1\)"),
        ({"a": torch.full((2, 2), float("nan")), "b": torch.eye(1)}, NonFiniteError, "layer 'a'"),
    ],
)
def test_other_data_is_refused(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PMatBlockDiag(data=data, layer_collection=LAYERS)
