"""LikelihoodContract: built-in likelihoods pass it, and each way of being wrong fails one of its tests."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, Poisson

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.likelihoods.categorical import ClassifLogits
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.likelihoods.poisson import PoissonLogRate
from nngeo_core.testing import LikelihoodCase, LikelihoodContract


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def classes() -> LikelihoodCase:
    def log_probability(outputs: Tensor, y: Tensor) -> Tensor:
        return Categorical(logits=outputs).log_prob(y)

    return LikelihoodCase(
        ClassifLogits(), draw(4, 3), log_probability, torch.arange(3), refused=[draw(4, 3, 2), draw(4)]
    )


def counts() -> LikelihoodCase:
    outcomes = torch.tensor(list(product(range(60), repeat=2)), dtype=torch.float64)
    return LikelihoodCase(PoissonLogRate(), draw(3, 2), lambda f, y: Poisson(f.exp()).log_prob(y).sum(1), outcomes)


def values(likelihood: GaussianLikelihood | None = None) -> LikelihoodCase:
    grid = torch.arange(-24, 24, 0.3, dtype=torch.float64).unsqueeze(1)
    chosen = GaussianLikelihood(covariance=4.0) if likelihood is None else likelihood
    return LikelihoodCase(chosen, draw(3, 1), lambda f, y: Normal(f, 2.0).log_prob(y).sum(1), grid, volume=0.3)


class TestBuiltIn(LikelihoodContract):
    def cases(self) -> Mapping[str, Callable[[], LikelihoodCase]]:
        return {"classes": classes, "counts": counts, "values": values}


class WithoutTargets(GaussianLikelihood):
    def sample(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        raise UnsupportedOperationError("no draws")

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        raise UnsupportedOperationError("no score")


class TestWithoutTargets(LikelihoodContract):
    unsupported = frozenset({"sample", "score"})

    def cases(self) -> Mapping[str, Callable[[], LikelihoodCase]]:
        return {"values": lambda: values(WithoutTargets(covariance=4.0))}


class Wrong(GaussianLikelihood):
    """One method of a Gaussian of variance 4 spoilt by a factor, or by mixing examples."""

    def __init__(self, spoilt: str, factor: float) -> None:
        super().__init__(covariance=4.0)
        self.spoilt, self.factor = spoilt, factor

    def _spoil(self, method: str, value: Tensor) -> Tensor:
        return value * self.factor if method == self.spoilt else value

    def metric(self, outputs: Tensor, u: Tensor, targets: Any = None) -> Tensor:
        return self._spoil("metric", super().metric(outputs, u, targets))

    def directions(self, outputs: Tensor, targets: Any, chosen: slice) -> Tensor:
        found = super().directions(outputs, targets, chosen)
        return found * (1 + outputs.mean()) if self.spoilt == "mixing" else self._spoil("directions", found)

    def score(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self._spoil("score", super().score(outputs, y))

    def sample(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        return outputs + self._spoil("sample", super().sample(outputs, uniform) - outputs)


@pytest.mark.parametrize(
    ("spoilt", "factor", "test"),
    [
        ("metric", 16.0, "metric_is_the_expectation"),
        ("directions", 0.5, "metric_is_the_expectation"),
        ("mixing", 1.0, "directions_come_in_any_slices"),
        ("score", -1.0, "score_is_the_gradient_of_the_log_probability"),
        ("sample", 1.1, "draws_have_the_moments_of_the_score"),
    ],
)
def test_a_wrong_likelihood_fails(spoilt: str, factor: float, test: str) -> None:
    with pytest.raises(AssertionError):
        getattr(LikelihoodContract(), f"test_{test}")(partial(values, Wrong(spoilt, factor)))


def test_outcomes_that_are_not_all_fail() -> None:
    case = classes()
    partly = LikelihoodCase(case.likelihood, case.outputs, case.log_probability, case.outcomes[:2])
    with pytest.raises(AssertionError, match="they add up to"):
        LikelihoodContract().test_case_covers_all_targets(lambda: partly)


def test_a_shape_that_is_taken_though_it_should_be_refused_fails() -> None:
    case = classes()
    lenient = LikelihoodCase(case.likelihood, case.outputs, case.log_probability, (), refused=[case.outputs])
    with pytest.raises(AssertionError, match=r"outputs of shape \(4, 3\) were not refused"):
        LikelihoodContract().test_other_shapes_are_refused(lambda: lenient)


def test_a_suite_without_cases_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"LikelihoodContract has no cases: override cases\(\)"):
        LikelihoodContract().cases()
