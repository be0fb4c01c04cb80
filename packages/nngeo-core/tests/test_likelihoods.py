"""Every likelihood against the expectation over its own targets: E_y[s s^T] with s the gradient of log p(y | outputs)."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, MultivariateNormal, Poisson

from nngeo_core import Likelihood, ShapeError
from nngeo_core.likelihoods.bernoulli import BinaryLogits, MultilabelLogits
from nngeo_core.likelihoods.categorical import ClassifLogits, ClassifLogSoftmax
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.likelihoods.poisson import PoissonLogRate
from nngeo_core.likelihoods.positions import CausalLMLogits, SegmentationLogits
from nngeo_core.plugins import registry
from nngeo_core.testing import relative_error

LogProb = Callable[[Tensor, Tensor], Tensor]

COVARIANCE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]], dtype=torch.float64)


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def over_targets(outputs: Tensor, targets: list[Tensor], log_p: LogProb) -> Tensor:
    """E_y[s s^T], shape (n, c, c), summed over all targets y of one example (each of them given for all examples)."""
    n, c = len(outputs), outputs[0].numel()
    total = torch.zeros(n, c, c, dtype=outputs.dtype)
    for y in targets:
        leaf = outputs.clone().requires_grad_()
        found = log_p(leaf, y.expand(n, *y.shape))
        (score,) = torch.autograd.grad(found.sum(), leaf)
        s = score.reshape(n, -1)
        total += found.detach().exp()[:, None, None] * s[:, :, None] * s[:, None, :]
    return total


def classes(count: int, *positions: int) -> list[Tensor]:
    size = torch.Size(positions).numel()
    return [torch.tensor(labels).view(positions) for labels in product(range(count), repeat=size)]


def categorical(axis: int) -> LogProb:
    def log_p(outputs: Tensor, y: Tensor) -> Tensor:
        return Categorical(logits=outputs.movedim(axis, -1)).log_prob(y).flatten(1).sum(1)

    return log_p


BITS = [torch.tensor(bits, dtype=torch.float64) for bits in product((0, 1), repeat=3)]

CASES: dict[str, tuple[Likelihood, Tensor, list[Tensor], LogProb]] = {
    "classif": (
        ClassifLogits(), draw(4, 3), classes(3), lambda f, y: Categorical(logits=f).log_prob(y)
    ),
    "logsoftmax": (
        ClassifLogSoftmax(), draw(4, 3).log_softmax(1), classes(3), lambda f, y: f.gather(1, y.unsqueeze(1)).squeeze(1)
    ),
    "segmentation-1d": (SegmentationLogits(), draw(3, 2, 3), classes(2, 3), categorical(1)),
    "segmentation-2d": (SegmentationLogits(), draw(2, 3, 2, 2), classes(3, 2, 2), categorical(1)),
    "causal-lm": (CausalLMLogits(), draw(3, 3, 2), classes(2, 3), categorical(-1)),
    "binary": (
        BinaryLogits(), draw(4), list(torch.eye(2).double()[0]), lambda f, y: Bernoulli(logits=f).log_prob(y)
    ),
    "binary-column": (
        BinaryLogits(), draw(4, 1), list(torch.eye(2).double()[:1].T), lambda f, y: Bernoulli(logits=f).log_prob(y).sum(1)
    ),
    "multilabel": (MultilabelLogits(), draw(4, 3), BITS, lambda f, y: Bernoulli(logits=f).log_prob(y).sum(1)),
    "poisson": (
        PoissonLogRate(), draw(3, 2), [torch.tensor(y, dtype=torch.float64) for y in product(range(60), repeat=2)],
        lambda f, y: Poisson(f.exp()).log_prob(y).sum(1),
    ),
}  # fmt: skip


def directions(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    v = likelihood.directions(outputs, None, slice(0, likelihood.n_directions(outputs)))
    assert v.shape[1:] == outputs.shape
    return v.reshape(len(v), len(outputs), -1)


every_case = pytest.mark.parametrize("name", list(CASES))


@every_case
def test_the_metric_is_the_expectation_over_all_targets(name: str) -> None:
    likelihood, outputs, targets, log_p = CASES[name]
    likelihood.check(outputs)
    expected = over_targets(outputs, targets, log_p)
    v = directions(likelihood, outputs)
    assert relative_error(torch.einsum("kna,knb->nab", v, v), expected) <= 1e-10
    u = draw(*outputs.shape, seed=1)
    found = likelihood.metric(outputs, u)
    assert found.shape == outputs.shape
    assert (
        relative_error(found.reshape(len(u), -1), torch.einsum("nab,nb->na", expected, u.reshape(len(u), -1))) <= 1e-10
    )


@every_case
def test_directions_come_in_any_slices(name: str) -> None:
    likelihood, outputs, _, _ = CASES[name]
    whole = directions(likelihood, outputs)
    for width in (1, 2, len(whole)):
        parts = [
            likelihood.directions(outputs, None, slice(k, min(len(whole), k + width)))
            for k in range(0, len(whole), width)
        ]
        assert torch.equal(torch.cat(parts).view_as(whole), whole)


@every_case
def test_the_score_is_the_gradient_of_the_log_likelihood(name: str) -> None:
    likelihood, outputs, targets, log_p = CASES[name]
    for y in targets[:: max(1, len(targets) // 5)]:
        every = y.expand(len(outputs), *y.shape)
        leaf = outputs.clone().requires_grad_()
        (expected,) = torch.autograd.grad(log_p(leaf, every).sum(), leaf)
        assert relative_error(likelihood.score(outputs, every), expected) <= 1e-12


@every_case
def test_targets_are_drawn_with_their_probability(name: str) -> None:
    """Frequencies over a fine grid of uniform numbers (one position) or 40,000 draws (several)."""
    likelihood, outputs, targets, log_p = CASES[name]
    outputs = outputs[:1]
    shape, draws = likelihood.draws_shape(outputs), 40_000
    size = torch.Size(shape).numel()
    if size == 1:
        uniform = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).view(draws, *shape)
    else:
        uniform = torch.rand(draws, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = likelihood.sample(outputs.expand(draws, *outputs.shape[1:]), uniform).reshape(draws, -1)
    worst = 0.0
    for target in targets:
        p = float(log_p(outputs, target.expand(1, *target.shape)).exp())
        frequency = float((y == target.reshape(-1)).all(1).double().mean())
        worst = max(worst, abs(frequency - p) / ((p * (1 - p)) ** 0.5 + 1e-3))
    assert worst <= (2e-4 if size == 1 else 5 / draws**0.5)


@pytest.mark.parametrize(
    "covariance",
    [4.0, torch.tensor(0.25), torch.tensor([1.0, 2.0, 0.5]), COVARIANCE],
    ids=["4", "1/4", "diagonal", "full"],
)
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 1, 3)], ids=str)
def test_a_gaussian_metric_is_the_inverse_covariance(covariance: Any, shape: tuple[int, ...]) -> None:
    likelihood, outputs = GaussianLikelihood(covariance), draw(*shape)
    likelihood.check(outputs)
    s = torch.as_tensor(covariance, dtype=torch.float64)
    full = s if s.ndim == 2 else torch.diag(s.expand(3))
    inverse = torch.linalg.inv(full)
    v = directions(likelihood, outputs)
    assert relative_error(torch.einsum("kna,knb->nab", v, v), inverse.expand(4, 3, 3)) <= 1e-14
    u = draw(*shape, seed=1)
    assert relative_error(likelihood.metric(outputs, u).flatten(1), u.flatten(1) @ inverse) <= 1e-14
    y, leaf = draw(*shape, seed=2), outputs.clone().requires_grad_()
    log_p = MultivariateNormal(leaf.flatten(1), full).log_prob(y.flatten(1))
    (expected,) = torch.autograd.grad(log_p.sum(), leaf)
    assert relative_error(likelihood.score(outputs, y), expected) <= 1e-13
    assert relative_error(directions(likelihood, outputs.float()).double(), v) <= 1e-6


def test_gaussian_targets_have_the_covariance() -> None:
    """The average of s s^T over draws is the metric: nothing is multiplied by S that should be divided."""
    outputs = torch.zeros(100_000, 3, dtype=torch.float64)
    likelihood = GaussianLikelihood(COVARIANCE)
    uniform = torch.rand(outputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = likelihood.sample(outputs, uniform)
    assert relative_error(y.T @ y / len(y), COVARIANCE) <= 0.02
    s = likelihood.score(outputs, y)
    assert relative_error(s.T @ s / len(s), torch.linalg.inv(COVARIANCE)) <= 0.02


@pytest.mark.parametrize(("covariance", "message"), [
    (0.0, "variances are positive and finite, got 0.0"),
    (torch.tensor([1.0, -1.0]), "variances are positive and finite, got -1.0"),
    (torch.tensor([1.0, float("nan")]), "variances are positive and finite"),
    (torch.ones(2, 2), "positive definite, and this one has the eigenvalue"),
    (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "finite and symmetric, and this one is not"),
    (torch.ones(2, 3), r"a \(c, c\) matrix; got shape \(2, 3\)"),
])  # fmt: skip
def test_a_covariance_that_is_none(covariance: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianLikelihood(covariance)


@pytest.mark.parametrize(("likelihood", "shape", "message"), [
    (ClassifLogits(), (4,), "'classif_binary_logits' takes one logit"),
    (ClassifLogits(), (4, 1), "'regression' one value"),
    (ClassifLogits(), (4, 5, 3), "'causal_lm_logits' takes"),
    (ClassifLogits(), (4, 3, 5, 5), "'segmentation_logits' takes"),
    (SegmentationLogits(), (4, 3), "'classif_logits' takes"),
    (SegmentationLogits(), (4, 1, 5, 5), "two classes at least, .* 'multilabel_logits' one logit for each pixel"),
    (CausalLMLogits(), (4, 3), "'classif_logits' takes"),
    (CausalLMLogits(), (4, 3, 1), "two tokens at least"),
    (BinaryLogits(), (4, 2), "'multilabel_logits' one for each label"),
    (MultilabelLogits(), (4, 2, 2), "expects outputs of shape"),
    (GaussianLikelihood(torch.ones(3)), (4, 2), "a covariance of 3 values"),
])  # fmt: skip
def test_other_shapes_are_refused_with_the_kind_that_fits(
    likelihood: Likelihood, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        likelihood.check(torch.zeros(shape))


def test_outputs_that_are_no_log_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="end the model in log_softmax"):
        ClassifLogSoftmax().check(draw(4, 3))
    ClassifLogSoftmax().check(draw(4, 3, scale=30.0).float().log_softmax(1))


@pytest.mark.parametrize("name", ["classif", "segmentation-2d", "causal-lm", "binary", "multilabel"])
@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_confident_logits_stay_finite_and_accurate_in_float32(name: str, scale: float) -> None:
    likelihood, outputs, _, _ = CASES[name]
    logits = draw(*(50, *outputs.shape[1:]), scale=scale, seed=4)
    exact = directions(likelihood, logits.float().double())
    found = directions(likelihood, logits.float())
    assert found.isfinite().all()
    assert relative_error(found.square().sum(0), exact.square().sum(0)) <= 1e-5
    u = draw(*logits.shape, seed=5)
    product_ = likelihood.metric(logits.float(), u.float())
    assert product_.isfinite().all()
    assert relative_error(product_, likelihood.metric(logits.float().double(), u)) <= 1e-5


def test_many_classes_build_no_square_matrix() -> None:
    """50,000 classes: a c x c matrix would take 10 GB."""
    outputs = draw(2, 50_000).float()
    likelihood = ClassifLogits()
    some = likelihood.directions(outputs, None, slice(49_989, 49_999))
    assert some.shape == (10, 2, 50_000) and some.isfinite().all()
    assert likelihood.metric(outputs, outputs).shape == outputs.shape


def test_what_counts_in_a_segmentation() -> None:
    outputs, labels = draw(2, 3, 2, 2), torch.tensor([[[0, 9], [1, 2]], [[9, 9], [0, 9]]])
    likelihood = SegmentationLogits(ignore_index=9)
    mask = likelihood.position_mask((outputs, labels))
    assert mask is not None and mask.tolist() == [[True, False, True, True], [False, False, True, False]]
    assert likelihood.spread(mask, outputs).shape == (2, 1, 2, 2)
    assert likelihood.position_mask(outputs) is None


TOKENS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [0, 0, 5, 6]])
PADDING = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
LABELS = torch.tensor([[-100, -100, 7, 8], [5, 6, -100, -100], [-100, -100, 5, 6]])


@pytest.mark.parametrize(("batch", "expected"), [
    (TOKENS, ["1110", "1110", "1110"]),
    ((TOKENS, LABELS), ["0110", "1000", "0110"]),
    ({"input_ids": TOKENS}, ["1110", "1110", "1110"]),
    ({"input_ids": TOKENS, "attention_mask": PADDING}, ["1110", "1000", "0010"]),
    ({"input_ids": TOKENS, "attention_mask": PADDING, "labels": LABELS}, ["0110", "1000", "0010"]),
    ({"inputs_embeds": draw(3, 4, 2), "attention_mask": PADDING}, ["1110", "1000", "0010"]),
])  # fmt: skip
def test_what_counts_in_a_causal_language_model(batch: Any, expected: list[str]) -> None:
    found = CausalLMLogits().position_mask(batch)
    assert ["".join(str(int(flag)) for flag in row) for row in found] == expected


def test_the_next_tokens() -> None:
    shifted = torch.tensor([[6, 7, 8, -100], [6, 0, 0, -100], [0, 5, 6, -100]])
    assert CausalLMLogits().observed({"input_ids": TOKENS}).equal(shifted)
    assert CausalLMLogits().observed(TOKENS).equal(shifted)
    assert CausalLMLogits().observed((TOKENS, LABELS))[0].tolist() == [-100, 7, 8, -100]


def test_registered_kinds() -> None:
    names = {"causal_lm_logits", "causal_lm_logits_random_signs", "classif_binary_logits", "classif_logits",
             "classif_logsoftmax", "multilabel_logits", "poisson", "regression", "segmentation_logits",
             "segmentation_logits_random_signs"}  # fmt: skip
    assert names <= set(registry.names("likelihoods"))
    assert all(isinstance(registry.likelihood(name)(), Likelihood) for name in names)


def test_huge_poisson_rates_are_drawn() -> None:
    outputs = torch.tensor([[36.0], [37.0], [45.0], [100.0]], dtype=torch.float64)
    assert (PoissonLogRate().sample(outputs, torch.zeros(4, 1, dtype=torch.float64)) == 0).all()
    for uniform in (0.1, 0.5, 0.9):
        found = PoissonLogRate().sample(outputs, torch.full((4, 1), uniform, dtype=torch.float64))
        assert torch.allclose(found, outputs.exp(), rtol=1e-6)
