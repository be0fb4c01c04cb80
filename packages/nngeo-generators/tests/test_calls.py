"""Captured calls: grouped by module, and located by comparing with one example alone."""

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import Call, LinearLayer
from nngeo_generators.calls import CapturedCall, by_module, located
from nngeo_generators.plan import Use
from nngeo_generators.rules.generic import GenericRule
from nngeo_generators.rules.linear import LinearRule

MODULES = nn.Linear(3, 2), nn.Linear(3, 2)


def captured(
    *arguments: Tensor, returned: tuple[int, ...], module: nn.Module = MODULES[0], rule: object = None
) -> CapturedCall:
    rule = GenericRule(subtree=False) if rule is None else rule
    use = Use(module, "a", rule, "a", ("weight", "bias"), (slice(0, 6), slice(6, 8)), LinearLayer(3, 2).numel())
    described = (torch.Size(returned), torch.bfloat16, torch.device("cpu"))
    return CapturedCall((use,), Call(arguments, {"flag": True}, "a", 4), (), (described,), ())


def test_gradients_that_were_not_found_are_zero_and_at_least_float32() -> None:
    call = captured(returned=(4, 2))
    (missing,) = call.gradients([None], 3)
    (found,) = call.gradients([torch.ones(3, 4, 2, dtype=torch.bfloat16)], 3)
    assert (missing.shape, missing.dtype, missing.any().item()) == ((3, 4, 2), torch.float32, False)
    assert found.dtype == torch.float32 and found.all()


def test_calls_are_grouped_by_module_in_order() -> None:
    calls = [captured(returned=(1,), module=module) for module in (*MODULES, MODULES[0])]
    assert by_module(calls) == {MODULES[0]: [calls[0], calls[2]], MODULES[1]: [calls[1]]}


def test_the_axes_of_arguments_and_outputs_are_noted() -> None:
    together = captured(torch.ones(6, 4, 3), torch.ones(6), returned=(4, 2))
    (found,) = located([together], [captured(torch.ones(6, 1, 3), torch.ones(6), returned=(1, 2))])
    assert (found.call.argument_axes, found.call.output_axes) == ((1, None, None), (0,))
    assert found.example_axes(0) == [0] and together.example_axes(0) == [0]


def test_without_that_the_examples_are_first_or_wherever_a_rule_lets_them_be() -> None:
    assert captured(returned=(4, 4), rule=LinearRule()).example_axes(0) == [0]
    assert captured(returned=(4, 2, 4)).example_axes(0) == [0, 2]


@pytest.mark.parametrize(("alone", "message"), [
    ([], "there are 1 for all examples and 0 for one of them alone"),
    ([captured(torch.ones(1, 3), returned=(4, 2))], "what is returned does not depend on the number of examples"),
    ([captured(torch.ones(2, 3), returned=(1, 2))], r"it has shape \(4, 3\) for all examples and \(2, 3\) for one"),
])  # fmt: skip
def test_calls_that_do_not_show_their_examples_are_refused(alone: list[CapturedCall], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        located([captured(torch.ones(4, 3), returned=(4, 2))], alone)
