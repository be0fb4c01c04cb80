"""The rule of instance normalisation."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core import Call, UnsupportedLayerError
from nngeo_core.layers.sources import find_rule
from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.instance_norm import InstanceNormRule

KINDS: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def instance_norm(*shape: int, train: bool = False, **options: Any) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        generator = torch.Generator().manual_seed(0)
        module = KINDS[len(shape)](shape[1], affine=True, **options).double().train(train)
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + name.endswith("var"))
        return RuleCase(module, torch.randn(shape, dtype=torch.float64, generator=generator))

    return build


class TestInstanceNormRule(RuleContract):
    rule = InstanceNormRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "sequence": instance_norm(4, 3, 5),
            "sequence-with-running-statistics": instance_norm(4, 3, 5, track_running_stats=True),
            "images": instance_norm(3, 2, 2, 3, eps=0.1),
            "images-with-running-statistics": instance_norm(3, 2, 2, 3, eps=0.1, track_running_stats=True),
            "images-in-training": instance_norm(3, 2, 2, 3, train=True),
            "tracking-in-training": instance_norm(3, 2, 2, 3, train=True, track_running_stats=True),
            "films": instance_norm(2, 3, 2, 1, 3),
            "as-many-channels-as-examples": instance_norm(3, 3, 3),
        }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.booleans(), st.sampled_from([1e-5, 0.1]))
def test_any_geometry_equals_autograd(shape: list[int], track: bool, eps: float) -> None:
    case = instance_norm(*shape, 2, track_running_stats=track, eps=eps)()
    g = torch.randn(2, *shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = InstanceNormRule().jacobian(case.module, case.call, g, ("weight", "bias"))
    agree(found.to_dense(), case.autograd(g, ("weight", "bias")), "to_dense")


def test_running_statistics_are_left_alone() -> None:
    case = instance_norm(3, 2, 4, train=True, track_running_stats=True)()
    before = {name: buffer.clone() for name, buffer in case.module.named_buffers()}
    InstanceNormRule().jacobian(case.module, case.call, torch.ones(1, 3, 2, 4, dtype=torch.float64), ("weight",))
    assert all(torch.equal(buffer, before[name]) for name, buffer in case.module.named_buffers())


def test_without_affine_parameters_there_is_nothing_to_do() -> None:
    assert find_rule(nn.InstanceNorm2d(3)) is None


def test_one_image_is_refused() -> None:
    x = torch.ones(4, 5, 6)
    with pytest.raises(UnsupportedLayerError) as error:
        InstanceNormRule().jacobian(nn.InstanceNorm2d(4, affine=True), Call((x,), {}, "norm"), x[None], ("weight",))
    assert str(error.value) == (
        "'norm' was called on one example of shape (4, 5, 6); expected the examples first, then at least 3 more axes"
    )


def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor]) -> None:
    norms = [nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm2d(2, affine=True, track_running_stats=True)]
    layers = [nn.Conv2d(2, 3, 2), norms[0], nn.Tanh(), nn.Conv2d(3, 2, 2), norms[1], nn.Tanh(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, 3)).double().eval()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
