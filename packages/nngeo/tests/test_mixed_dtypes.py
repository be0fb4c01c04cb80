"""Models whose layers, or outputs, are of different dtypes: sums are kept in that with the most digits."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from nngeo import FIM, GramMatrix, Hessian, Jacobian, LayerCollection, PVector, random_pvector, verify

SINGLE, DOUBLE = torch.float32, torch.float64
X = torch.randint(5, (17, 2), generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """An embedding, a linear layer and a normalisation in one dtype, a linear layer in a second, outputs in a third."""

    def __init__(self, first: torch.dtype, second: torch.dtype, outputs: torch.dtype) -> None:
        super().__init__()
        self.table, self.a = nn.Embedding(5, 3).to(first), nn.Linear(3, 4).to(first)
        self.norm, self.b = nn.LayerNorm(4).to(first), nn.Linear(4, 2).to(second)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.a(self.table(x).mean(1))))
        found: Tensor = self.b(hidden.to(self.b.weight.dtype))
        return found.to(self.outputs)


COMBINATIONS = list(product((SINGLE, DOUBLE), repeat=3))
FACTORED = ("kfac", "ekfac", "quasidiag")
REPRESENTATIONS = ("dense", "blockdiag", "diag", "lowrank", "implicit", "auto", *FACTORED)


def models(dtypes: tuple[torch.dtype, ...]) -> tuple[Mixed, Mixed]:
    """The model and the same in float64."""
    torch.manual_seed(0)
    model, exact = Mixed(*dtypes), Mixed(DOUBLE, DOUBLE, DOUBLE)
    exact.load_state_dict(model.state_dict())
    return model, exact


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found.double() - expected).norm() <= 1e-5 * expected.norm())


@pytest.mark.parametrize("check", ["first-batch", "off"])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("dtypes", COMBINATIONS, ids=str)
def test_matrices(dtypes: tuple[torch.dtype, ...], representation: str, check: str) -> None:
    model, exact = models(dtypes)
    only = ["a", "b"] if representation in FACTORED else None
    found = FIM(model, X, representation, layer_collection=LayerCollection.from_model(model, only=only), check=check)
    expected = FIM(exact, X, representation, layer_collection=LayerCollection.from_model(exact, only=only))
    finest = max(dtypes[: 2 if representation == "implicit" else 3], key=lambda dtype: dtype.itemsize)
    assert found.dtype == finest
    v = random_pvector(expected.layer_collection, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    mine = PVector(found.layer_collection, vector_repr=v.get_flat_representation().to(finest))
    assert close(found.mv(mine).get_flat_representation(), expected.mv(v).get_flat_representation())
    assert close(found.solve(mine, 0.1).get_flat_representation(), expected.solve(v, 0.1).get_flat_representation())
    assert close(found.trace(), expected.trace())


@pytest.mark.parametrize("dtypes", COMBINATIONS, ids=str)
def test_kernels_maps_and_the_rest(dtypes: tuple[torch.dtype, ...]) -> None:
    model, exact = models(dtypes)
    for representation in ("dense", "implicit", "blockdiag", "trace"):
        assert close(GramMatrix(model, X, representation).norm(), GramMatrix(exact, X, representation).norm())
    layers = LayerCollection.from_model(exact)
    v = random_pvector(layers, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)).get_flat_representation()
    J, K = Jacobian(model, X), Jacobian(exact, X)
    mine = PVector(J.layer_collection, vector_repr=v.to(max(dtypes[:2], key=lambda dtype: dtype.itemsize)))
    expected = (K @ PVector(layers, vector_repr=v)).get_flat_representation()
    assert close((J @ mine).get_flat_representation(), expected)
    y, loss = torch.zeros(len(X), dtype=torch.int64), nn.CrossEntropyLoss(reduction="none")
    products = [
        Hessian(one, (X, y), "implicit", loss=loss, function=lambda x, y, one=one: one(x)).mv(vector)
        for one, vector in ((model, mine), (exact, PVector(layers, vector_repr=v)))
    ]
    assert close(*(product.get_flat_representation() for product in products))
    verify(model, X)
