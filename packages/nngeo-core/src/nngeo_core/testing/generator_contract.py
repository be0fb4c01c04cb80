"""The suite that every Generator passes: Jacobians and products equal autograd's, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.untouched import undisturbed
from nngeo_core.testing.models import MODELS, Case
from nngeo_core.testing.oracles import fisher, output_jacobian, relative_error
from nngeo_core.vectors.fvector import FVector
from nngeo_core.vectors.pvector import PVector, random_pvector

if TYPE_CHECKING:
    import pytest

__all__ = ["GeneratorContract"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
BUDGETS = (None, 1)


class GeneratorContract:
    """What is asked of a Generator: subclass it in a test file, give the class, and pytest does the rest.

    For every model: the Jacobian equals `torch.autograd.grad` of each output of each example, in float64 to 1e-10 and in
    float32 to 1e-4, for all directions, any slice of them, and one example; the stream's Jacobians sum to F whatever the
    batches and the memory budget; products, quadratic forms, blocks, J v and J^T u follow; some of the layers can be asked
    for; and model, gradients and modes are afterwards as they were, also when the model raises or the stream is not read
    to its end.

    Attributes:
        generator: The class.
        models: Names in `nngeo_core.testing.MODELS` of the models that it can differentiate.
        unsupported: Of "jvp" and "vjp" those that it does not have: they must raise `UnsupportedOperationError`.

    Example:
        >>> from nngeo_core.plugins import registry
        >>> class TestHooks(GeneratorContract):
        ...     generator = registry.generator("hooks")
        >>> suite = TestHooks()
        >>> suite.test_jacobian_equals_autograd(MODELS["mlp"], torch.float64)
    """

    generator: ClassVar[type[Generator]]
    models: ClassVar[Collection[str]] = tuple(MODELS)
    unsupported: ClassVar[Collection[str]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each model, and each dtype, likelihood or budget where the test asks for one."""
        choices: dict[str, Any] = {
            "build": {name: MODELS[name] for name in self.models},
            "dtype": {str(dtype): dtype for dtype in TOLERANCES},
            "variant": {name: name for name in ("regression", "classif_logits")},
            "budget": {str(budget): budget for budget in BUDGETS},
        }
        for name, values in choices.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values.values(), ids=values.keys())

    def test_jacobian_equals_autograd(self, build: Callable[[], Case], dtype: torch.dtype) -> None:
        """For all directions, each slice of them, all examples and one."""
        case = build().to(dtype)
        expected = output_jacobian(case.model, case.inputs, _names(case))
        generator = self.generator(case.model, "regression")
        for n in (len(case.inputs), 1):
            batch = generator.jacobian(case.inputs[:n])
            assert (batch.n_examples, batch.total_directions, batch.sign) == (n, case.n_output, 1)
            assert batch.directions == slice(0, case.n_output) and batch.first_slice
            _agree(_dense(generator, batch), expected[:, :n], f"the Jacobian of {n} examples")
            for start in range(case.n_output):
                part = generator.jacobian(case.inputs[:n], slice(start, case.n_output))
                assert part.directions == slice(start, case.n_output)
                _agree(_dense(generator, part), expected[start:, :n], f"directions from {start} on")

    def test_streams_sum_to_the_fisher_matrix(
        self, build: Callable[[], Case], variant: str, budget: int | None
    ) -> None:
        """Whatever the batches; each example is counted once."""
        case = build()
        expected = fisher(case.model, case.inputs, _names(case), variant)
        for batches in (case.inputs.split(3), case.inputs.split(len(case.inputs)), case.inputs.split(1)):
            generator = self.generator(case.model, variant, memory_budget=budget)
            total, n = torch.zeros_like(expected), 0
            for batch in _streamed(generator, [(part,) for part in batches]):
                rows = _dense(generator, batch).flatten(0, 1)
                total += batch.sign * rows.T @ rows
                n += batch.n_examples if batch.first_slice else 0
            assert n == len(case.inputs), f"{n} of {len(case.inputs)} examples were counted"
            _agree(total / n, expected, f"the sum over batches of {len(batches[0])}")

    def test_products(self, build: Callable[[], Case], variant: str) -> None:
        """F v, v^T F v and the layers' blocks of F."""
        case = build()
        F, v = fisher(case.model, case.inputs, _names(case), variant), _vector(case)
        flat, loader = v.get_flat_representation(), [(part,) for part in case.inputs.split(2)]
        generator = self.generator(case.model, variant)
        _agree(generator.product(v, loader).get_flat_representation(), F @ flat, "F v")
        _agree(generator.quadratic_form(v, loader), flat @ F @ flat, "v^T F v")
        places = list(generator.layer_collection.slices().values())
        for place, block in zip(places, generator.blocks(places, loader), strict=True):
            _agree(block, F[place, place], f"the block of parameters {place.start} to {place.stop - 1}")

    def test_maps(self, build: Callable[[], Case]) -> None:
        """J v and J^T u, the examples in their order; or an error, where that is said."""
        case = build()
        J, v = output_jacobian(case.model, case.inputs, _names(case)), _vector(case)
        u = torch.randn(J.shape[:2], generator=torch.Generator().manual_seed(1), dtype=J.dtype)
        generator, loader = self.generator(case.model, "regression"), [(part,) for part in case.inputs.split(2)]
        calls: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
            "jvp": (lambda: generator.jvp(v, loader).vector_repr, J @ v.get_flat_representation()),
            "vjp": (
                lambda: generator.vjp(FVector(u), loader).get_flat_representation(),
                torch.einsum("cnd,cn->d", J, u),
            ),
        }
        for name, (call, expected) in calls.items():
            if name not in self.unsupported:
                _agree(call(), expected, name)
                continue
            try:
                call()
            except UnsupportedOperationError:
                continue
            raise AssertionError(f"{name} is listed as unsupported, and did not raise UnsupportedOperationError")

    def test_some_of_the_layers(self, build: Callable[[], Case]) -> None:
        """A generator about one layer alone, made so or restricted to it."""
        case = build()
        for layer_id in LayerCollection.from_model(case.model):
            one = LayerCollection.from_model(case.model, only=[layer_id])
            names = [name for name, _ in one.named_parameters(case.model)]
            expected = output_jacobian(case.model, case.inputs, names)
            made = self.generator(case.model, "regression", layer_collection=one)
            for generator in (made, self.generator(case.model, "regression").restricted(one)):
                found = _dense(generator, generator.jacobian(case.inputs))
                _agree(found, expected, f"layer '{layer_id}' alone")

    def test_the_model_is_left_as_it_was(self, build: Callable[[], Case]) -> None:
        """Values, gradients, flags, modes and hooks; after a stream that is closed early and one that raises, too."""
        case = build()
        for parameter in case.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = _state(case)
        generator = self.generator(case.model, "regression")
        loader = [(part,) for part in case.inputs.split(2)]
        generator.jacobian(case.inputs)
        generator.product(_vector(case), loader)
        next(_streamed(generator, loader))

        def failing() -> Iterator[tuple[Tensor]]:
            yield loader[0]
            raise _Failed

        try:
            list(_streamed(generator, failing()))
        except _Failed:
            pass
        else:
            raise AssertionError("an exception of the loader was lost")
        after = _state(case)
        for name, value in before.items():
            same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
            assert same, f"{name} was {value} and is {after[name]}"

    def test_no_examples_are_refused(self, build: Callable[[], Case]) -> None:
        """An average over nothing is no number."""
        case = build()
        generator = self.generator(case.model, "regression")
        try:
            generator.product(_vector(case), [])
        except ValueError:
            return
        raise AssertionError("a product over no examples did not raise ValueError")


class _Failed(Exception):
    pass


def _names(case: Case) -> list[str]:
    return [name for name, _ in LayerCollection.from_model(case.model).named_parameters(case.model)]


def _vector(case: Case) -> PVector:
    source = torch.Generator().manual_seed(0)
    return random_pvector(LayerCollection.from_model(case.model), dtype=case.inputs.dtype, generator=source)


def _streamed(generator: Generator, batches: Any) -> Iterator[JacobianBatch]:
    """The stream, read as it asks to be."""
    with undisturbed(generator.model, generator.device), torch.no_grad(), closing(generator.stream(batches)) as stream:
        yield from stream


def _dense(generator: Generator, batch: JacobianBatch) -> Tensor:
    return batch.to_dense({layer_id: layer.numel() for layer_id, layer in generator.layer_collection.items()})


def _agree(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, f"{what} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    error = relative_error(found, expected)
    assert error <= TOLERANCES[expected.dtype], f"{what} differs from autograd's by {error:.1e}"


def _state(case: Case) -> dict[str, Any]:
    model = case.model
    state: dict[str, Any] = {f"the value of '{name}'": value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state[f"the gradient of '{name}'"] = None if parameter.grad is None else parameter.grad.tolist()
        state[f"requires_grad of '{name}'"] = parameter.requires_grad
    for name, module in model.named_modules():
        hooks = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]
        state[f"mode and hooks of '{name}'"] = (module.training, [list(part) for part in hooks])
    return state
