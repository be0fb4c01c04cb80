"""Estimates by draws: unbiased, falling with their number, and the same in every pass over the data."""

import pytest
import torch
from torch import Tensor

from nngeo_core import Likelihood, ShapeError, UnsupportedOperationError
from nngeo_core.likelihoods.bernoulli import MultilabelLogits
from nngeo_core.likelihoods.categorical import ClassifLogits
from nngeo_core.likelihoods.curvature import LossCurvature, OutputMetric
from nngeo_core.likelihoods.draws import fresh_seed, uniform
from nngeo_core.likelihoods.empirical import Empirical
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.likelihoods.poisson import PoissonLogRate
from nngeo_core.likelihoods.positions import CausalLMLogits, SegmentationLogits
from nngeo_core.likelihoods.sampled import MonteCarlo, RandomSigns
from nngeo_core.likelihoods.targets import digests
from nngeo_core.testing import relative_error


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


INNER: dict[str, tuple[Likelihood, Tensor]] = {
    "classif": (ClassifLogits(), draw(4, 3)),
    "segmentation": (SegmentationLogits(), draw(4, 2, 3)),
    "causal-lm": (CausalLMLogits(), draw(4, 2, 3)),
    "multilabel": (MultilabelLogits(), draw(4, 2)),
    "regression": (GaussianLikelihood(torch.tensor([[2.0, 0.5], [0.5, 1.0]])), draw(4, 2)),
    "poisson": (PoissonLogRate(), draw(4, 2)),
}


def exact(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    v = likelihood.directions(outputs, None, slice(0, likelihood.n_directions(outputs))).flatten(2)
    return torch.einsum("kna,knb->nab", v, v)


def estimate(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    targets = likelihood.targets(torch.arange(len(outputs)))
    v = likelihood.directions(outputs, targets, slice(0, likelihood.n_directions(outputs))).flatten(2)
    u = draw(*outputs.shape, seed=9)
    found = torch.einsum("kna,knb->nab", v, v)
    products = torch.einsum("nab,nb->na", found, u.flatten(1))
    assert relative_error(likelihood.metric(outputs, u, targets).flatten(1), products) <= 1e-12
    return found


@pytest.mark.parametrize("name", list(INNER))
def test_monte_carlo_is_unbiased_and_its_error_falls(name: str) -> None:
    inner, outputs = INNER[name]
    expected, errors = exact(inner, outputs), {}
    for trials in (2, 18):
        found = torch.stack([estimate(MonteCarlo(inner, trials, seed), outputs) for seed in range(200)])
        error = found.mean(0) - expected
        spread = found.std(0) / 200**0.5
        assert (error.abs() <= 5 * spread + 1e-12).all()
        errors[trials] = float((found - expected).norm())
    assert 0.8 <= errors[2] / errors[18] / 3 <= 1.25


@pytest.mark.parametrize("name", ["segmentation", "causal-lm"])
def test_random_signs_are_unbiased_with_as_many_directions_as_one_position_has(name: str) -> None:
    inner, outputs = INNER[name]
    assert isinstance(inner, SegmentationLogits | CausalLMLogits)
    expected = exact(inner, outputs)
    assert RandomSigns(inner, 0).n_directions(outputs) == inner.n_output(outputs) - 1
    found = torch.stack([estimate(RandomSigns(inner, seed), outputs) for seed in range(200)])
    assert ((found.mean(0) - expected).abs() <= 5 * found.std(0) / 200**0.5 + 1e-12).all()
    assert relative_error(found[0], expected) > 1e-2


def test_random_signs_need_positions() -> None:
    with pytest.raises(UnsupportedOperationError, match="categorical likelihoods over positions, got PoissonLogRate"):
        RandomSigns(PoissonLogRate())  # type: ignore[arg-type]


@pytest.mark.parametrize("trials", [0, -1, 1.5, True])
def test_trials_are_counted(trials: object) -> None:
    with pytest.raises(ValueError, match="at least 1; got"):
        MonteCarlo(ClassifLogits(), trials)  # type: ignore[arg-type]


def test_draws_do_not_depend_on_order_company_or_slices() -> None:
    outputs, batch = draw(6, 3), (draw(6, 2), torch.arange(6))
    likelihood = MonteCarlo(ClassifLogits(), 5, seed=3)
    whole = likelihood.directions(outputs, likelihood.targets(batch), slice(0, 5))
    order = torch.tensor([4, 0, 2])
    some = likelihood.targets(tuple(part[order] for part in batch))
    assert likelihood.directions(outputs[order], some, slice(0, 5)).equal(whole[:, order])
    parts = [likelihood.directions(outputs, likelihood.targets(batch), slice(k, k + 1)) for k in range(5)]
    assert torch.cat(parts).equal(whole)
    other = MonteCarlo(ClassifLogits(), 5, seed=4)
    assert not other.directions(outputs, other.targets(batch), slice(0, 5)).equal(whole)


def test_digests_tell_examples_apart_by_all_their_tensors() -> None:
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    assert len(set(digests((x, y)).tolist())) == 2 and len(set(digests({"a": x, "b": [y, y]}).tolist())) == 2
    assert digests((x, y))[0] == digests((x[2:3], y[2:3]))[0]
    for dtype in (torch.bfloat16, torch.bool, torch.int64, torch.float16):
        assert digests(torch.arange(3).to(dtype)).shape == (3,)
    assert digests(torch.arange(4)).shape == (4,) and digests(torch.zeros(0, 2)).shape == (0,)


def test_numbers_are_uniform_and_independent() -> None:
    found = uniform(digests(torch.arange(2000)), 7, (50,))
    assert found.shape == (2000, 50) and bool((found > 0).all()) and bool((found < 1).all())
    counts = torch.histc(found, 20, 0, 1)
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 45  # chi-square with 19 degrees of freedom, p = 0.0007
    assert torch.corrcoef(found.T).fill_diagonal_(0).abs().max() < 0.1
    assert uniform(digests(torch.arange(3)), 7, (2, 2), first=4).equal(
        uniform(digests(torch.arange(3)), 7, (8,))[:, 4:].view(3, 2, 2)
    )


def test_seeds() -> None:
    first, second = (fresh_seed(torch.Generator().manual_seed(1)) for _ in range(2))
    assert first == second and fresh_seed() != fresh_seed()


def test_the_empirical_metric_is_made_of_loss_gradients() -> None:
    outputs, y = draw(4, 3), torch.tensor([0, 2, 1, 1])
    expected = torch.nn.functional.one_hot(y, 3) - outputs.softmax(1)
    for loss in (None, lambda f, t: torch.nn.functional.cross_entropy(f, t, reduction="none")):
        likelihood = Empirical(ClassifLogits(), loss)
        found = likelihood.directions(outputs, likelihood.targets((outputs, y)), slice(0, 1))
        assert relative_error(found[0].abs(), expected.abs()) <= 1e-14
    with pytest.raises(
        ShapeError, match=r'the loss returned shape \(\) for 4 examples, expected \(4,\).*reduction="none"'
    ):
        Empirical(ClassifLogits(), torch.nn.functional.cross_entropy).directions(outputs, y, slice(0, 1))


def test_the_curvature_of_a_convex_loss() -> None:
    outputs, y = draw(4, 3), torch.tensor([0, 2, 1, 1])
    likelihood = LossCurvature(ClassifLogits(), lambda f, t: torch.nn.functional.cross_entropy(f, t, reduction="none"))
    assert likelihood.n_negative(outputs, y) == 0 and likelihood.n_directions(outputs, y) == 3
    v = likelihood.directions(outputs, y, slice(0, 3))
    assert relative_error(torch.einsum("kna,knb->nab", v, v), exact(ClassifLogits(), outputs)) <= 1e-12
    u = draw(4, 3, seed=1)
    assert relative_error(likelihood.metric(outputs, u, y), ClassifLogits().metric(outputs, u)) <= 1e-12


def test_the_curvature_of_an_indefinite_loss_has_signs() -> None:
    outputs, y = draw(4, 2), draw(4, 2, seed=1)
    likelihood = LossCurvature(GaussianLikelihood(), lambda f, t: (f - t).cos().sum(1) + f.prod(1))
    one = [lambda f, t=t: (f - t).cos().sum() + f.prod() for t in y]
    hessian = torch.stack([torch.autograd.functional.hessian(loss, f) for loss, f in zip(one, outputs, strict=True)])
    total, negative = likelihood.n_directions(outputs, y), likelihood.n_negative(outputs, y)
    assert (total, negative) == (4, 2)
    v = likelihood.directions(outputs, y, slice(0, 4))
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    assert relative_error(torch.einsum("k,kna,knb->nab", signs, v, v), hessian) <= 1e-12
    u = draw(4, 2, seed=2)
    assert relative_error(likelihood.metric(outputs, u, y), torch.einsum("nab,nb->na", hessian, u)) <= 1e-12


def test_a_metric_of_the_users() -> None:
    """Outputs are points on a sphere given by two angles; the metric is that of the sphere."""

    def sphere(angles: Tensor) -> Tensor:
        return torch.diag_embed(torch.stack([torch.ones_like(angles[:, 0]), angles[:, 0].sin().square()], 1))

    outputs = draw(4, 2)
    likelihood = OutputMetric(sphere, GaussianLikelihood())
    assert relative_error(exact(likelihood, outputs), sphere(outputs)) <= 1e-14
    with pytest.raises(ShapeError, match=r"the metric has shape \(4, 2\), expected \(n, c, c\) = \(4, 2, 2\)"):
        OutputMetric(lambda f: f, GaussianLikelihood()).metric(outputs, outputs)


@pytest.mark.parametrize("name", ["monte_carlo", "empirical", "loss_curvature", "output_metric"])
def test_outputs_of_shape_n_have_the_metric_of_a_column(name: str) -> None:
    outputs, u, y = draw(5), draw(5, seed=1), draw(5, seed=2)
    metrics: dict[str, Likelihood] = {
        "monte_carlo": MonteCarlo(GaussianLikelihood(), 3, 0),
        "empirical": Empirical(GaussianLikelihood(), None),
        "loss_curvature": LossCurvature(GaussianLikelihood(), lambda f, t: (f - t).flatten().pow(4)),
        "output_metric": OutputMetric(lambda f: f.view(-1, 1, 1).exp(), GaussianLikelihood()),
    }
    likelihood = metrics[name]
    flat, column = likelihood.targets((outputs, y)), likelihood.targets((outputs, y.unsqueeze(1)))
    if name == "monte_carlo":
        column = flat
    found = likelihood.metric(outputs, u, flat)
    expected = likelihood.metric(outputs.unsqueeze(1), u.unsqueeze(1), column)
    assert found.shape == (5,)
    torch.testing.assert_close(found, expected.squeeze(1), rtol=1e-14, atol=0)
    total = likelihood.n_directions(outputs, flat)
    v = likelihood.directions(outputs, flat, slice(0, total - likelihood.n_negative(outputs, flat)))
    torch.testing.assert_close((v * (v * u)).sum(0), found, rtol=1e-12, atol=1e-14)
