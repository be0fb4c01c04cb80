"""The likelihood passes the contract, and Fisher matrices of whole models are what plain autograd says."""

from collections.abc import Callable, Mapping

import pytest
import torch
from nngeo_heteroscedastic import HeteroscedasticGaussian
from torch import Tensor, nn
from torch.distributions import Normal

from nngeo import FIM, FIM_MonteCarlo, ShapeError
from nngeo_core.testing import LikelihoodCase, LikelihoodContract, output_jacobian, relative_error


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def log_probability(outputs: Tensor, y: Tensor) -> Tensor:
    means, logarithms = outputs.chunk(2, 1)
    return Normal(means, logarithms.exp().sqrt()).log_prob(y).sum(1)


class TestHeteroscedasticGaussian(LikelihoodContract):
    def cases(self) -> Mapping[str, Callable[[], LikelihoodCase]]:
        return {"one-value": self.one_value, "two-values": self.two_values}

    def one_value(self) -> LikelihoodCase:
        grid = torch.arange(-20, 20, 0.05, dtype=torch.float64).unsqueeze(1)
        return self.case(numbers(4, 2), grid, volume=0.05)

    def two_values(self) -> LikelihoodCase:
        axis = torch.arange(-12, 12, 0.4, dtype=torch.float64)
        return self.case(numbers(3, 4) / 4, torch.cartesian_prod(axis, axis), volume=0.4**2)

    def case(self, outputs: Tensor, grid: Tensor, volume: float) -> LikelihoodCase:
        refused = [numbers(4, 3), numbers(4), numbers(4, 2, 2)]
        return LikelihoodCase(HeteroscedasticGaussian(), outputs, log_probability, grid, volume, refused)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def exact_fisher(model: nn.Module, x: Tensor) -> Tensor:
    """(1/n) sum_i J_i^T L_i J_i from the Jacobian and the metric written out."""
    J = output_jacobian(model, x, [name for name, _ in model.named_parameters()])  # (outputs, examples, parameters)
    L = torch.stack(((-model(x)[:, 1]).exp(), torch.full((len(x),), 0.5, dtype=torch.float64))).detach()
    return torch.einsum("cn,cnd,cne->de", L, J, J) / len(x)


def test_the_fisher_matrix_of_a_network() -> None:
    model, x = network(), numbers(6, 3)
    dense, diag = FIM(model, x, ["dense", "diag"], variant="heteroscedastic")
    assert relative_error(dense.get_dense_tensor(), exact_fisher(model, x)) <= 1e-10
    assert relative_error(diag.get_diag(), exact_fisher(model, x).diagonal()) <= 1e-10


def test_draws_converge_to_it() -> None:
    model, x = network(), numbers(6, 3)
    generator = torch.Generator().manual_seed(0)
    found = FIM_MonteCarlo(model, x, "dense", variant="heteroscedastic", trials=4000, generator=generator)
    assert relative_error(found.get_dense_tensor(), exact_fisher(model, x)) <= 0.1


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"'heteroscedastic' expects targets \(5, 1\), got \(5,\)"):
        HeteroscedasticGaussian().score(numbers(5, 2), numbers(5))
