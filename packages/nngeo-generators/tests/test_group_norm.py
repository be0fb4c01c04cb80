"""The rule of group normalisation."""

from collections.abc import Callable, Mapping

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nngeo_core.testing import RuleCase, RuleContract
from nngeo_core.testing.jacobian_contract import agree
from nngeo_core.testing.oracles import fisher, relative_error
from nngeo_generators.rules.group_norm import GroupNormRule


def group_norm(groups: int, *shape: int, eps: float = 1e-5) -> Callable[[], RuleCase]:
    def build() -> RuleCase:
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return RuleCase(nn.GroupNorm(groups, shape[1], eps).double(), x)

    return build


class TestGroupNormRule(RuleContract):
    rule = GroupNormRule()

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        return {
            "vectors": group_norm(2, 3, 6),
            "sequence": group_norm(3, 4, 6, 5),
            "images": group_norm(2, 3, 4, 2, 3),
            "films": group_norm(2, 2, 4, 2, 1, 3, eps=0.1),
            "one-group": group_norm(1, 3, 4, 2, 2),
            "a-group-for-each-channel": group_norm(4, 3, 4, 2, 2),
        }


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(1, 3), max_size=3), st.sampled_from([1e-5, 0.1]))
def test_any_geometry_equals_autograd(groups: int, width: int, sides: list[int], eps: float) -> None:
    case = group_norm(groups, 3, groups * width, *sides, 2, eps=eps)()
    g = torch.randn(2, 3, groups * width, *sides, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = GroupNormRule().jacobian(case.module, case.call, g, ("weight", "bias"))
    agree(found.to_dense(), case.autograd(g, ("weight", "bias")), "to_dense")


def test_fisher_of_a_small_model(dense_fisher: Callable[..., Tensor]) -> None:
    layers = [nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.GroupNorm(4, 16)]
    model = nn.Sequential(*layers, nn.Linear(16, 3)).double().train()  # the same in both modes
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    expected = fisher(model, x, [name for name, _ in model.named_parameters()], "classif_logits")
    assert relative_error(dense_fisher(model, x, "classif_logits"), expected) <= 1e-10
