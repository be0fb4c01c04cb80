"""The rule of batch normalisation with running statistics."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import Call, DenseJacobian, LayerCollection, UnsupportedLayerError
from nngeo_core.layers.sources import find_rule
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.batch_norm import BatchNormRule

KINDS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def trained(module: nn.Module) -> nn.Module:
    """In eval mode, with running statistics that are not those of a fresh module."""
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.linspace(0.5, 2.0, len(buffer)) if name.endswith("var") else torch.randn(len(buffer)))
    return module.double().eval()


def batch_norm(*shape: int, kind: Any = None, **options: Any) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = (kind or KINDS[len(shape)])(shape[1], **options)
            return RuleCase(trained(module), torch.randn(shape, dtype=torch.float64))

    return build


class TestBatchNormRule(RuleContract):
    rule = BatchNormRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "vectors": batch_norm(4, 3),
            "sequence": batch_norm(4, 3, 5),
            "one-position": batch_norm(4, 3, 1),
            "as-many-positions-as-examples": batch_norm(4, 4, 4),
            "images": batch_norm(4, 3, 2, 3, eps=0.1),
            "films": batch_norm(2, 3, 2, 1, 3),
            "one-channel": batch_norm(3, 1, 2, 2),
            "synchronized": batch_norm(4, 3, 2, 2, kind=nn.SyncBatchNorm),
        }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.sampled_from([1e-5, 0.1, 2.0]), st.booleans())
def test_any_geometry_equals_autograd(shape: list[int], eps: float, transposed: bool) -> None:
    case = batch_norm(*shape, eps=eps)()
    (x,) = case.call.arguments
    case = RuleCase(case.module, x.movedim(0, -1).contiguous().movedim(-1, 0) if transposed else x)
    g = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = BatchNormRule().jacobian(case.module, case.call, g, ("weight", "bias"))
    agree(found.to_dense(), case.autograd(g, ("weight", "bias")), "to_dense")


def test_the_bias_alone_does_not_need_the_input() -> None:
    g = torch.randn(2, 3, 4, 5)
    found = BatchNormRule().jacobian(
        nn.BatchNorm1d(4), Call((torch.full((3, 4, 5), torch.nan),), {}, "bn"), g, ("bias",)
    )
    assert isinstance(found, DenseJacobian)
    assert relative_error(found.tensor, g.sum(3)) <= 1e-6


def test_the_input_is_normalised_once_for_all_slices_of_directions() -> None:
    module, call = nn.BatchNorm1d(4).eval(), Call((torch.randn(3, 4),), {}, "bn")
    found = [BatchNormRule().jacobian(module, call, torch.randn(2, 3, 4), ("weight",)) for _ in range(2)]
    assert len({jacobian.x_hat.data_ptr() for jacobian in found}) == 1  # type: ignore[attr-defined]


def test_buffers_are_left_alone() -> None:
    module = trained(nn.BatchNorm1d(4))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    BatchNormRule().jacobian(
        module, Call((torch.randn(3, 4).double(),), {}, "bn"), torch.randn(2, 3, 4).double(), ("weight",)
    )
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_layers_of_a_model_in_training_mode_may_be_collected() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
    assert LayerCollection.from_model(model)["1"].parameter_shapes() == {"weight": (3,), "bias": (3,)}


def test_without_affine_parameters_there_is_nothing_to_do() -> None:
    assert find_rule(nn.BatchNorm1d(3, affine=False)) is None


@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}])
def test_the_generator_refuses_statistics_of_the_batch(dense_fisher: Callable[..., Tensor], options: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, **options)).train(not options)
    with pytest.raises(UnsupportedLayerError, match=r"'1' \(BatchNorm1d\) normalises with the statistics of the batch"):
        dense_fisher(model, torch.randn(4, 2))


def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor]) -> None:
    layers = [nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.BatchNorm1d(12)]
    model = trained(nn.Sequential(*layers, nn.Linear(12, 3)))
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
