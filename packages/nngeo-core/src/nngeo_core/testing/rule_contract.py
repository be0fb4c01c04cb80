"""The suite that every LayerRule passes: the Jacobian read off a call equals autograd's, example by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.sum import add
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_core.testing.jacobian_contract import CONTRACTIONS, TOLERANCES, agree

if TYPE_CHECKING:
    import pytest

__all__ = ["RuleCase", "RuleContract"]


@dataclass(frozen=True)
class RuleCase:
    """A module in float64 and one call of it.

    Attributes:
        module: The module, in the mode in which it is differentiated.
        arguments: What it is called with, tensors with the examples first; one tensor stands for itself.
    """

    module: nn.Module
    arguments: Tensor | tuple[Tensor, ...]

    def to(self, dtype: torch.dtype) -> RuleCase:
        """The case in another floating-point dtype; the module itself is converted."""
        return RuleCase(self.module.to(dtype), tuple(_convert(part, dtype) for part in self.call.arguments))

    @property
    def call(self) -> Call:
        """The call as a forward hook sees it."""
        arguments = (self.arguments,) if isinstance(self.arguments, Tensor) else self.arguments
        return Call(tuple(part.detach() for part in arguments), {}, "module", len(arguments[0]))

    def first(self, n: int) -> RuleCase:
        """The case with its first n examples."""
        return RuleCase(self.module, tuple(part[:n] for part in self.call.arguments))

    def autograd(self, gradients: Tensor, names: tuple[str, ...]) -> Tensor:
        """The Jacobian with respect to the named parameters, shape (c, n, d), for output gradients (c, n, ...)."""
        parameters = [self.module.get_parameter(name) for name in names]
        rows = []
        for i in range(gradients.shape[1]):
            output = self.module(*(part[i : i + 1] for part in self.call.arguments))[0]
            for gradient in gradients[:, i]:
                found = torch.autograd.grad(output, parameters, gradient, retain_graph=True, materialize_grads=True)
                rows.append(torch.cat([part.flatten() for part in found]))
        return torch.stack(rows).view(gradients.shape[1], len(gradients), -1).transpose(0, 1)


class RuleContract:
    """What is asked of a LayerRule: subclass it in a test file, give the rule and the cases, and pytest does the rest.

    For every case, in float64 to 1e-10 and in float32 to 1e-4: the Jacobian equals `torch.autograd.grad` through the
    module called on each example alone, for all parameters of a part together and each of them alone; every contraction passes
    `JacobianContract`'s checks; two calls of the module add up; one example and one direction are no special case; and
    what the rule says of its Jacobian's structure, if anything, is so.

    Attributes:
        rule: The rule.

    Example:
        >>> from nngeo_core.jacobians.scale_shift import ScaleShiftJacobian
        >>> from nngeo_core.layers.layer import ParameterLayer
        >>> class Scale(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(3).double())
        ...
        ...     def forward(self, x):
        ...         return self.weight * x
        >>> class ScaleRule(LayerRule):
        ...     name, module_types = "scale", (Scale,)
        ...
        ...     def describe(self, module):
        ...         return ParameterLayer((("weight", tuple(module.weight.shape)),))
        ...
        ...     def jacobian(self, module, call, output_gradients, names):
        ...         x = call.tensor("x", 0)
        ...         return ScaleShiftJacobian(x.unsqueeze(1), output_gradients.unsqueeze(2), has_bias=False)
        >>> class TestScaleRule(RuleContract):
        ...     rule = ScaleRule()
        ...
        ...     def cases(self):
        ...         return {"vectors": lambda: RuleCase(Scale(), torch.arange(6.0).view(2, 3).double())}
        >>> suite = TestScaleRule()
        >>> suite.test_jacobian_equals_autograd(suite.cases()["vectors"], torch.float64)
    """

    rule: ClassVar[LayerRule]

    def cases(self) -> Mapping[str, Callable[[], RuleCase]]:
        """Functions that build a case, by its name: each a module of its own with two examples or more."""
        raise NotImplementedError(f"{type(self).__name__} has no cases: override cases()")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each case, and each dtype where the test asks for one."""
        if "build" in metafunc.fixturenames:
            cases = self.cases()
            if "dtype" in metafunc.fixturenames:
                metafunc.parametrize("dtype", TOLERANCES, ids=str)
            metafunc.parametrize("build", cases.values(), ids=cases.keys())

    def test_description_lists_the_modules_parameters(self, build: Callable[[], RuleCase]) -> None:
        """`describe` has the names and shapes of the module's parameters, and `check` accepts the module."""
        module = build().module
        self.rule.check(module)
        types = self.rule.module_types  # none for a rule that a plugin offers through `nngeo_resolve_rule` alone
        assert not types or isinstance(module, types), f"the rule is for {types}"
        described = self.rule.describe(module)
        expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        assert described.parameter_shapes() == expected, f"{described.parameter_shapes()} described, {expected} found"
        assert described == self.rule.describe(module), "two descriptions of one module differ"

    def test_jacobian_equals_autograd(self, build: Callable[[], RuleCase], dtype: torch.dtype) -> None:
        """For all parameters of a part and for each alone; several directions and one; all examples and one."""
        case = build().to(dtype)
        for names in self._name_choices(case):
            for part, directions in ((case, 3), (case, 1), (case.first(1), 3), (case.first(1), 1)):
                jacobian, gradients = self._jacobian(part, names, directions)
                expected = part.autograd(gradients, names)
                agree(jacobian.to_dense(), expected, f"{names} of {tuple(gradients.shape[:2])}")

    def test_contractions(self, build: Callable[[], RuleCase], dtype: torch.dtype) -> None:
        """Every contraction equals the dense one, also with the Jacobian of one example and direction."""
        case = build().to(dtype)
        for names in self._name_choices(case):
            jacobian, one = self._jacobian(case, names, 3)[0], self._jacobian(case.first(1), names, 1)[0]
            for check in CONTRACTIONS.values():
                check(jacobian, one)
                check(one, jacobian)

    def test_two_calls_add_up(self, build: Callable[[], RuleCase], dtype: torch.dtype) -> None:
        """The Jacobians of two calls of one module, joined in whatever structure they share."""
        case = build().to(dtype)
        again = RuleCase(case.module, tuple(part.flip(0) for part in case.call.arguments))
        for names in self._name_choices(case):
            (first, gradients), (second, more) = self._jacobian(case, names, 3), self._jacobian(again, names, 3, seed=1)
            expected = case.autograd(gradients, names) + again.autograd(more, names)
            both = add(first, second)
            agree(both.to_dense(), expected, f"{names} of two calls")
            for check in CONTRACTIONS.values():
                check(both, first)

    def test_structure_is_that_of_the_jacobian(self, build: Callable[[], RuleCase]) -> None:
        """The Kronecker factors have the shapes that `structure` says, and there are none if it says so."""
        case = build()
        for names in self._name_choices(case):
            structure = self.rule.structure(case.module, names)
            try:
                factors = self._jacobian(case, names, 3)[0].kronecker_factors()
            except UnsupportedOperationError:
                assert structure is None or structure.layout is None, f"{names} have no factors, {structure} said"
                continue
            found = (tuple(factors.inputs.shape), tuple(factors.outputs.shape))
            assert structure is None or structure.factor_shapes == found, f"{names}: {structure} said, {found} found"
            assert structure is None or structure.layout == factors.layout, f"{names}: {structure}, {factors.layout}"

    def _name_choices(self, case: RuleCase) -> list[tuple[str, ...]]:
        """All parameters of each part together, and each alone, in the rule's order."""
        parts = self.rule.parts(case.module)
        return [*parts, *((name,) for names in parts for name in names if len(names) > 1)]

    def _jacobian(
        self, case: RuleCase, names: tuple[str, ...], directions: int, seed: int = 0
    ) -> tuple[LayerJacobian, Tensor]:
        """What the rule reads off the call for some output gradients, and those gradients."""
        with torch.no_grad():
            output = case.module(*case.call.arguments)
        generator = torch.Generator().manual_seed(seed)
        gradients = torch.randn((directions, *output.shape), dtype=torch.float64, generator=generator).to(output)
        return self.rule.jacobian(case.module, case.call, gradients, names), gradients


def _convert(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
