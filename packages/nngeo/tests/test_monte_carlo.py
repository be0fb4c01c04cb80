"""FIM_MonteCarlo: unbiased, with errors that fall as stated, and the same draws wherever an example comes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nngeo import (
    FIM,
    ClassifLogits,
    FIM_MonteCarlo,
    GaussianLikelihood,
    LossCurvature,
    MonteCarlo,
    OutputMetric,
    UnsupportedOperationError,
    random_pvector,
)
from nngeo_core.testing import relative_error


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


MODEL, X = net(), draw(20, 3)
EXACT = FIM(MODEL, X, "dense").get_dense_tensor()


def estimate(seed: int, trials: int = 1, x: Any = X) -> Any:
    return FIM_MonteCarlo(MODEL, x, "dense", trials=trials, generator=seeded(seed), check="off")


SINGLES = torch.stack([estimate(seed).get_dense_tensor() for seed in range(200)])
STANDARD_DEVIATION = SINGLES.std(0)
"""Of each entry, for one trial."""


def test_unbiased_over_200_seeds() -> None:
    error = (SINGLES.mean(0) - EXACT).abs() / (STANDARD_DEVIATION / 200**0.5 + 1e-15)
    assert error.max() <= 5 and error.mean() <= 1


@pytest.mark.parametrize("trials", [4, 100])
def test_within_four_standard_errors_which_fall_as_the_square_root_of_trials(trials: int) -> None:
    found = estimate(1000, trials).get_dense_tensor()
    error = (found - EXACT).abs() / (STANDARD_DEVIATION / trials**0.5 + 1e-15)
    assert error.max() <= 4
    several = torch.stack([estimate(2000 + k, trials).get_dense_tensor() for k in range(10)])
    ratio = ((several - EXACT).square().mean() / STANDARD_DEVIATION.square().mean()) ** 0.5
    assert 0.7 <= ratio * trials**0.5 <= 1.4


@pytest.mark.parametrize(
    ("variant", "outputs"),
    [("regression", 3), (GaussianLikelihood(4.0), 3), ("poisson", 3), ("multilabel_logits", 3), ("classif_binary_logits", 1)],
    ids=["regression", "covariance", "poisson", "multilabel", "binary"],
)  # fmt: skip
def test_every_likelihood_that_can_be_drawn_from(variant: Any, outputs: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, outputs)).double()
    exact = FIM(model, X, "diag", variant=variant).trace()
    found = torch.stack(
        [FIM_MonteCarlo(model, X, "diag", variant=variant, trials=20, generator=seeded(k)).trace() for k in range(10)]
    )
    assert (found.mean() - exact).abs() <= 4 * found.std() / 10**0.5
    assert found.std() / exact < 0.3


def test_the_seed_is_kept_and_gives_the_same_matrix_again() -> None:
    fresh, other = FIM_MonteCarlo(MODEL, X, "dense", trials=3), FIM_MonteCarlo(MODEL, X, "dense", trials=3)
    assert fresh.generator.likelihood.seed != other.generator.likelihood.seed
    assert not fresh.get_dense_tensor().equal(other.get_dense_tensor())
    again = FIM(MODEL, X, "dense", variant=MonteCarlo(ClassifLogits(), 3, fresh.generator.likelihood.seed))
    assert again.get_dense_tensor().equal(fresh.get_dense_tensor())


def test_a_generator_gives_the_seed_and_advances() -> None:
    source = seeded(5)
    first, second = (FIM_MonteCarlo(MODEL, X, "dense", generator=source).get_dense_tensor() for _ in range(2))
    assert first.equal(estimate(5).get_dense_tensor()) and not first.equal(second)
    before = torch.get_rng_state()
    FIM_MonteCarlo(MODEL, X, "dense")
    assert torch.get_rng_state().equal(before)


def test_the_same_draws_in_every_pass_batch_order_and_product() -> None:
    expected = estimate(7, 3).get_dense_tensor()
    shuffled = DataLoader(TensorDataset(X), batch_size=6, shuffle=True)
    for loader in ([*X.split(1), X[:0]], X.split(7), X.flip(0), shuffled):
        assert relative_error(estimate(7, 3, loader).get_dense_tensor(), expected) <= 1e-12
    for budget in (1, 5000):
        F = FIM_MonteCarlo(MODEL, X, "dense", trials=3, generator=seeded(7), memory_budget=budget)
        assert relative_error(F.get_dense_tensor(), expected) <= 1e-12
    v = random_pvector(F.layer_collection, dtype=torch.float64)
    for loader in (X, shuffled):
        product = F.generator.product(v, loader).get_flat_representation()
        assert relative_error(product, expected @ v.get_flat_representation()) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_in_other_dtypes_are_as_good(dtype: torch.dtype) -> None:
    model, x = net().to(dtype), X.to(dtype)
    F = FIM_MonteCarlo(model, x, "diag", trials=200, generator=seeded(0))
    assert F.dtype == torch.float32
    assert relative_error(F.get_diag().double(), EXACT.diagonal()) <= 0.15
    assert torch.equal(FIM_MonteCarlo(model, x, "diag", trials=200, generator=seeded(0)).get_diag(), F.get_diag())


def test_all_tensors_of_an_example_count_and_nothing_else() -> None:
    """Extra keys choose other draws, always the same ones; what is no tensor chooses none."""

    def found(batch: Any) -> Tensor:
        F = FIM_MonteCarlo(
            MODEL, batch, "dense", generator=seeded(3), function=lambda batch: MODEL(batch["x"]), check="off"
        )
        tensor: Tensor = F.get_dense_tensor()
        return tensor

    plain, number = found({"x": X}), torch.arange(20)
    assert found({"x": X, "name": "a"}).equal(found({"x": X, "name": "b"})) and found({"x": X, "name": "a"}).equal(
        plain
    )
    numbered = found({"x": X, "number": number})
    assert not numbered.equal(plain) and numbered.equal(found({"x": X, "number": number}))
    assert numbered.equal(found({"number": number, "x": X})), "the order of a mapping's keys"


def test_zeros_of_either_sign_are_drawn_from_alike() -> None:
    x = X.clone()
    x[:, 0] = 0.0
    negative = x.clone()
    negative[:, 0] = -0.0
    assert estimate(4, 1, x).get_dense_tensor().equal(estimate(4, 1, negative).get_dense_tensor())


def test_equal_examples_get_equal_draws_and_the_estimate_stays_unbiased() -> None:
    twice = torch.cat((X[:4], X[:4]))
    assert relative_error(
        estimate(6, 1, twice).get_dense_tensor(), estimate(6, 1, X[:4]).get_dense_tensor()
    ) <= 1e-12  # fmt: skip
    exact = FIM(MODEL, X[:4], "dense").trace()
    found = torch.stack([estimate(seed, 1, twice).trace() for seed in range(60)])
    assert (found.mean() - exact).abs() <= 4 * found.std() / 60**0.5


def test_several_representations_share_the_draws() -> None:
    dense, diag, blocks = FIM_MonteCarlo(MODEL, X, ["dense", "diag", "blockdiag"], trials=2)
    assert relative_error(diag.get_diag(), dense.get_diag()) <= 1e-12
    assert relative_error(blocks.get_diag(), dense.get_diag()) <= 1e-12
    assert dense.n_examples == 20


@pytest.mark.parametrize(
    "variant",
    [
        OutputMetric(lambda f: torch.eye(3, dtype=f.dtype).expand(len(f), 3, 3), GaussianLikelihood()),
        LossCurvature(GaussianLikelihood(), lambda f, y: f.square().sum(1)),
        MonteCarlo(ClassifLogits()),
    ],
    ids=["output-metric", "loss-curvature", "monte-carlo"],
)
def test_what_is_no_distribution_cannot_be_drawn_from(variant: Any) -> None:
    with pytest.raises(UnsupportedOperationError, match="cannot draw targets"):
        FIM_MonteCarlo(MODEL, (X, X), "diag", variant=variant)


@pytest.mark.parametrize("trials", [0, -3, 2.0, True])
def test_trials_are_a_positive_number(trials: Any) -> None:
    with pytest.raises(ValueError, match="trials is how many targets to draw"):
        FIM_MonteCarlo(MODEL, X, "diag", trials=trials)
