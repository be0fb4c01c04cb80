"""GeneratorContract: HooksGenerator passes it, as does a plain generator of one's own; wrong ones do not."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nngeo_core import DenseJacobian, Generator, JacobianBatch, UnsupportedOperationError
from nngeo_core.testing import MODELS, Case, GeneratorContract
from nngeo_generators import HooksGenerator


class RowByRow(Generator):
    """One backward pass for each example and direction."""

    name = "row-by-row"

    def _jacobian(self, batch: Any, directions: slice | None) -> JacobianBatch:
        n = len(batch[0] if isinstance(batch, tuple) else batch)
        with torch.enable_grad():
            outputs = self.outputs(batch, n)
            total, _ = self.count_directions(outputs.detach(), batch)
            chosen = directions or slice(0, total)
            wanted = self.directions(outputs.detach(), batch, chosen)
            rows = torch.stack([self._row(outputs, one, i) for one in wanted for i in range(n)]).view(
                len(wanted), n, -1
            )
        layers = {name: DenseJacobian(rows[..., place]) for name, place in self.layer_collection.slices().items()}
        return JacobianBatch(layers, n, chosen, total, rows.dtype, rows.device)

    def _row(self, outputs: Tensor, direction: Tensor, i: int) -> Tensor:
        parameters = [parameter for _, parameter in self.layer_collection.named_parameters(self.model)]
        along = (outputs[i] * direction[i]).sum()
        found = torch.autograd.grad(along, parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    def stream(self, batches: Iterable[Any]) -> Iterator[JacobianBatch]:  # type: ignore[override]
        for batch in batches:
            yield self._jacobian(batch, None)

    def _product(self, v: Tensor, batches: Iterable[Any]) -> Tensor:
        total, n = torch.zeros_like(v), 0
        for batch in self.stream(batches):
            rows = torch.cat([layer.to_dense() for layer in batch.layers.values()], 2).flatten(0, 1)
            total += rows.T @ (rows @ v)
            n += batch.n_examples
        if not n:
            raise ValueError("no examples were given")
        return total / n

    def _jvp(self, v: Tensor, batches: Iterable[Any]) -> Tensor:
        raise UnsupportedOperationError("products with J; use 'hooks'")

    def _vjp(self, u: Tensor, batches: Iterable[Any]) -> Tensor:
        raise UnsupportedOperationError("products with J^T; use 'hooks'")


class TestHooksGenerator(GeneratorContract):
    generator = HooksGenerator


class TestRowByRow(GeneratorContract):
    generator = RowByRow
    models = ("mlp", "conv-groups", "tied-weight-own-bias")
    unsupported = ("jvp", "vjp")


class Doubled(HooksGenerator):
    def _jacobian(self, batch: Any, directions: slice | None) -> JacobianBatch:
        found = super()._jacobian(batch, directions)
        layers = {name: DenseJacobian(2 * layer.to_dense()) for name, layer in found.layers.items()}
        return JacobianBatch(
            layers, found.n_examples, found.directions, found.total_directions, found.dtype, found.device
        )


class Forgetful(HooksGenerator):
    def stream(self, batches: Iterable[Any]) -> Any:
        yield from super().stream(list(batches)[1:])


class Careless(HooksGenerator):
    def _jacobian(self, batch: Any, directions: slice | None) -> JacobianBatch:
        next(self.model.parameters()).grad = None
        return super()._jacobian(batch, directions)


class Swallowing(HooksGenerator):
    def stream(self, batches: Iterable[Any]) -> Any:
        try:
            yield from super().stream(batches)
        except Exception:
            return


class Unsaid(HooksGenerator):
    def product(self, v: Any, examples: Any) -> Any:
        return super().product(v, examples) if list(examples) else v


def contract(kind: type[Generator], unsupported: tuple[str, ...] = ()) -> GeneratorContract:
    class Suite(GeneratorContract):
        generator = kind

    suite = Suite()
    suite.unsupported = unsupported  # type: ignore[misc]
    return suite


FOUND: dict[str, tuple[type[Generator], Callable[[GeneratorContract, Callable[[], Case]], None], str]] = {
    "values": (Doubled, lambda suite, build: suite.test_jacobian_equals_autograd(build, torch.float64), "differs"),
    "counts": (
        Forgetful,
        lambda suite, build: suite.test_streams_sum_to_the_fisher_matrix(build, "regression", None),
        "counted",
    ),
    "gradients": (Careless, lambda suite, build: suite.test_the_model_is_left_as_it_was(build), "gradient"),
    "errors": (Swallowing, lambda suite, build: suite.test_the_model_is_left_as_it_was(build), "was lost"),
    "emptiness": (Unsaid, lambda suite, build: suite.test_no_examples_are_refused(build), "did not raise ValueError"),
}


@pytest.mark.parametrize(("kind", "test", "message"), FOUND.values(), ids=FOUND)
def test_wrong_generators_do_not_pass(
    kind: type[Generator], test: Callable[[GeneratorContract, Callable[[], Case]], None], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        test(contract(kind), MODELS["mlp"])


def test_what_is_listed_as_unsupported_has_to_raise() -> None:
    with pytest.raises(AssertionError, match="vjp is listed as unsupported"):
        contract(HooksGenerator, ("vjp",)).test_maps(MODELS["mlp"])
