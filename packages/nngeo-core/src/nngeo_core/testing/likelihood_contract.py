"""The suite that every Likelihood passes: its metric is the expectation over its own targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError, UnsupportedOperationError
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.testing.oracles import relative_error

if TYPE_CHECKING:
    import pytest

__all__ = ["LikelihoodCase", "LikelihoodContract"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
DRAWS = 4000


@dataclass(frozen=True)
class LikelihoodCase:
    """A likelihood, outputs for it, and what it takes to compute expectations over its targets.

    Attributes:
        likelihood: The likelihood.
        outputs: Outputs of a model in float64, shape (n, ...), two examples or more.
        log_probability: log p(y | outputs), shape (n,), of outputs and targets (n, *target); differentiable by autograd.
        outcomes: Every target that one example can have, each of shape (*target), or the points of a fine grid over them.
        volume: That of each cell of the grid, one number or shape (outcomes,); 1 where `outcomes` are all that there are.
        refused: Outputs of shapes that the likelihood has no meaning for.
    """

    likelihood: Likelihood
    outputs: Tensor
    log_probability: Callable[[Tensor, Tensor], Tensor]
    outcomes: Sequence[Tensor]
    volume: float | Tensor = 1.0
    refused: Sequence[Tensor] = ()

    def expectation(self) -> tuple[Tensor, Tensor]:
        """The total probability, shape (n,), and E[s s^T], shape (n, m, m), with s the gradient of log p for m outputs."""
        n, m = len(self.outputs), self.outputs[0].numel()
        total, moment = self.outputs.new_zeros(n), self.outputs.new_zeros(n, m, m)
        volumes = torch.as_tensor(self.volume, dtype=self.outputs.dtype).expand(len(self.outcomes))
        for outcome, volume in zip(self.outcomes, volumes, strict=True):
            log_probability, s = self.gradient(outcome.expand(n, *outcome.shape))
            weight = log_probability.exp() * volume
            total += weight
            moment += weight[:, None, None] * s[:, :, None] * s[:, None, :]
        return total, moment

    def gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """log p(y | outputs), shape (n,), and its gradient with respect to the outputs by autograd, shape (n, m)."""
        leaf = self.outputs.detach().clone().requires_grad_()
        found = self.log_probability(leaf, y)
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
        return found.detach(), gradient.flatten(1)


class LikelihoodContract:
    """What is asked of a Likelihood: subclass it in a test file, give the cases, and pytest does the rest.

    For every case: the metric, and V V^T for its directions, equal E_y[s s^T] in float64 to 1e-10 and follow in float32 to
    1e-4; directions come in any slices and do not mix examples; `score` is the gradient of log p, and draws of `sample`
    have the moments that they must have, within five standard errors; outputs of other shapes raise `ShapeError`.

    Example:
        >>> from torch.distributions import Bernoulli
        >>> from nngeo_core.likelihoods.bernoulli import BinaryLogits
        >>> class TestBinaryLogits(LikelihoodContract):
        ...     def cases(self):
        ...         return {"column": self.column}
        ...
        ...     def column(self):
        ...         outputs = torch.tensor([[0.5], [-2.0]]).double()
        ...         outcomes = torch.eye(2).double()[:1].T
        ...         log_probability = lambda outputs, y: Bernoulli(logits=outputs).log_prob(y).sum(1)
        ...         return LikelihoodCase(BinaryLogits(), outputs, log_probability, outcomes)
        >>> suite = TestBinaryLogits()
        >>> suite.test_metric_is_the_expectation(suite.column)
    """

    unsupported: ClassVar[frozenset[str]] = frozenset()
    """Among `"sample"` and `"score"`: what the likelihood does not offer, and raises `UnsupportedOperationError` for."""

    def cases(self) -> Mapping[str, Callable[[], LikelihoodCase]]:
        """Functions that build a case, by its name."""
        raise NotImplementedError(f"{type(self).__name__} has no cases: override cases()")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each case."""
        if "build" in metafunc.fixturenames:
            cases = self.cases()
            metafunc.parametrize("build", cases.values(), ids=cases.keys())

    def test_case_covers_all_targets(self, build: Callable[[], LikelihoodCase]) -> None:
        """The probabilities of the outcomes add up to one: else their expectations would prove nothing."""
        total, _ = build().expectation()
        assert relative_error(total, torch.ones_like(total)) <= TOLERANCES[torch.float64], f"they add up to {total}"

    def test_metric_is_the_expectation(self, build: Callable[[], LikelihoodCase]) -> None:
        """L u and V V^T u for the unit vectors u."""
        case = build()
        case.likelihood.check(case.outputs)
        assert case.likelihood.n_output(case.outputs) >= 1
        assert case.likelihood.n_negative(case.outputs) == 0, "a Fisher metric has no negative directions"
        expected = case.expectation()[1]
        assert relative_error(_metric(case.likelihood, case.outputs), expected) <= TOLERANCES[torch.float64]
        v = _directions(case.likelihood, case.outputs).flatten(2)
        assert relative_error(torch.einsum("cna,cnb->nab", v, v), expected) <= TOLERANCES[torch.float64]

    def test_float32(self, build: Callable[[], LikelihoodCase]) -> None:
        """Outputs in float32 give directions and metric in float32."""
        case = build()
        single = case.outputs.float()
        for compute in (_metric, _directions):
            found = compute(case.likelihood, single)
            assert found.dtype == torch.float32
            expected = compute(case.likelihood, single.double())
            assert relative_error(found.double(), expected) <= TOLERANCES[torch.float32]

    def test_directions_come_in_any_slices(self, build: Callable[[], LikelihoodCase]) -> None:
        """One, two or all at a time, of all examples or of one, they are the same."""
        case = build()
        whole = _directions(case.likelihood, case.outputs)
        for width in (1, 2):
            assert torch.equal(_directions(case.likelihood, case.outputs, width), whole)
        for i in range(len(case.outputs)):
            alone = _directions(case.likelihood, case.outputs[i : i + 1])
            assert relative_error(alone, whole[:, i : i + 1]) <= TOLERANCES[torch.float64]

    def test_score_is_the_gradient_of_the_log_probability(self, build: Callable[[], LikelihoodCase]) -> None:
        """For ten of the outcomes."""
        case = build()
        for outcome in case.outcomes[:: max(1, len(case.outcomes) // 10)]:
            y = outcome.expand(len(case.outputs), *outcome.shape)
            found = self._attempt("score", lambda y=y: case.likelihood.score(case.outputs, y))  # type: ignore[misc]
            if found is not None:
                assert found.shape == case.outputs.shape
                assert relative_error(found.flatten(1), case.gradient(y)[1]) <= TOLERANCES[torch.float64]

    def test_draws_have_the_moments_of_the_score(self, build: Callable[[], LikelihoodCase]) -> None:
        """E[s] = 0 and E[s s^T] = L over draws of the targets, within five standard errors; the same numbers draw the same."""
        case = build()
        many = case.outputs.repeat_interleave(DRAWS, 0)
        shape = (len(many), *case.likelihood.draws_shape(case.outputs))
        uniform = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        y = self._attempt("sample", lambda: case.likelihood.sample(many, uniform))
        if y is None:
            return
        assert torch.equal(y, case.likelihood.sample(many, uniform))
        drawn = LikelihoodCase(case.likelihood, many, case.log_probability, ())
        s = drawn.gradient(y)[1].unflatten(0, (len(case.outputs), DRAWS))
        products = s.unsqueeze(-1) * s.unsqueeze(-2)
        for values, expected in ((s, s.new_zeros(())), (products, _metric(case.likelihood, case.outputs))):
            bound = 5 * values.std(1) / DRAWS**0.5 + TOLERANCES[torch.float64]
            assert ((values.mean(1) - expected).abs() <= bound).all(), f"{values.mean(1)} drawn, {expected} expected"

    def test_other_shapes_are_refused(self, build: Callable[[], LikelihoodCase]) -> None:
        """`check` raises `ShapeError` and names the shape that it got."""
        case = build()
        for outputs in case.refused:
            try:
                case.likelihood.check(outputs)
            except ShapeError as error:
                assert str(tuple(outputs.shape)) in str(error)
            else:
                raise AssertionError(f"outputs of shape {tuple(outputs.shape)} were not refused")

    def _attempt(self, operation: str, run: Callable[[], Tensor]) -> Tensor | None:
        """The result; None for an operation that is not supported, which must raise."""
        if operation not in self.unsupported:
            return run()
        try:
            run()
        except UnsupportedOperationError:
            return None
        raise AssertionError(f"{operation!r} is listed as unsupported and did not raise")


def _metric(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """L, shape (n, m, m), by its products with unit vectors."""
    units = torch.eye(outputs[0].numel(), dtype=outputs.dtype).view(-1, *outputs.shape[1:])
    columns = [likelihood.metric(outputs, unit.expand_as(outputs)) for unit in units]
    assert all(column.shape == outputs.shape for column in columns)
    return torch.stack([column.flatten(1) for column in columns], -1)


def _directions(likelihood: Likelihood, outputs: Tensor, width: int | None = None) -> Tensor:
    """All directions, shape (c, n, ...), so many at a time."""
    total = likelihood.n_directions(outputs)
    starts = range(0, total, width or total)
    parts = [likelihood.directions(outputs, None, slice(k, min(total, k + (width or total)))) for k in starts]
    found = torch.cat(parts)
    assert found.shape == (total, *outputs.shape), f"{tuple(found.shape)} found, {(total, *outputs.shape)} expected"
    return found
