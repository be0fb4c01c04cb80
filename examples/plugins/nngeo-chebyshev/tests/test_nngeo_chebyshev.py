"""The rule passes the contract, and every representation that is installed works with the layer."""

from collections.abc import Callable, Mapping

import pytest
import torch
from nngeo_chebyshev import ChebyshevLinear, ChebyshevRule
from torch import Tensor, nn

from nngeo import FIM, LayerCollection, PVector, UnsupportedLayerError, verify
from nngeo_core.plugins import registry
from nngeo_core.testing import RuleCase, RuleContract, fisher, relative_error


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def layer(*sizes: int, bias: bool = True) -> ChebyshevLinear:
    torch.manual_seed(0)
    return ChebyshevLinear(*sizes, bias=bias).double()


class TestChebyshevRule(RuleContract):
    rule = ChebyshevRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "vectors": lambda: RuleCase(layer(3, 2, 4), numbers(5, 3)),
            "sequences": lambda: RuleCase(layer(3, 2, 2), numbers(2, 4, 3)),
            "images": lambda: RuleCase(layer(2, 3, 3), numbers(2, 2, 3, 2)),
            "no-positions": lambda: RuleCase(layer(3, 2, 2), numbers(2, 0, 3)),
            "no-bias": lambda: RuleCase(layer(3, 2, 3, bias=False), numbers(4, 3)),
            "degree-one": lambda: RuleCase(layer(3, 1, 1), numbers(2, 3)),
        }


def test_the_features_are_chebyshev_polynomials() -> None:
    x = numbers(5, 3)
    expected = torch.stack([(k * x.tanh().arccos()).cos() for k in (1, 2, 3, 4)], -1)
    assert relative_error(layer(3, 2, 4).features(x), expected) <= 1e-12


def test_a_single_vector_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"was called on shape \(3,\); expected \(n, \*, in_features\)"):
        case = RuleCase(layer(3, 2, 2), numbers(3))
        ChebyshevRule().jacobian(case.module, case.call, numbers(1, 3, 2), ("weight", "bias"))


@pytest.mark.parametrize("name", registry.names("representations"))
def test_every_representation_works_with_the_layer(name: str) -> None:
    """One layer with squared errors: F is a Kronecker product, so that factored representations are exact as well."""
    model, x = layer(3, 2, 3), numbers(7, 3)
    F = FIM(model, x, name, variant="regression")
    exact = fisher(model, x, ["weight", "bias"], "regression")
    assert relative_error(F.trace(), exact.trace()) <= 1e-10
    v = numbers(20)
    forms = {"all": v @ exact @ v, "blocks": v @ exact @ v, "diagonal": v.square() @ exact.diagonal()}
    expected = forms["all"] if name in ("kfac", "ekfac") else forms.get(F.exact_entries)
    found = F.vTMv(PVector(F.layer_collection, vector_repr=v))
    assert expected is None or relative_error(found, expected) <= 1e-10


def test_it_is_exact_between_other_layers_on_sequences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), ChebyshevLinear(3, 3, 3), nn.Flatten(), nn.Linear(15, 2)).double()
    report = verify(model, numbers(6, 5, 4))
    assert max(report.errors.values()) <= 1e-10
    assert "chebyshev" in str(LayerCollection.from_model(model))
