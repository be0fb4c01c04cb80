"""Small batches run together: never of two kinds, never more than fit, with the numbers of the batches they came in."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import FVector, PVector, random_pvector
from nngeo_core.testing.oracles import fisher, output_jacobian, relative_error
from nngeo_generators import HooksGenerator
from nngeo_generators.joining import Part, join

Hooks = Callable[..., HooksGenerator]

X = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def parts(*batches: Any, most: int = 100) -> list[Part]:
    """The parts that batches of one, two or three rows become."""
    first = [batch if isinstance(batch, Tensor) else next(iter(batch.values() if isinstance(batch, dict) else batch))
             for batch in batches]  # fmt: skip
    return list(
        join((Part(batch, (k,) * len(x)), most) for k, (batch, x) in enumerate(zip(batches, first, strict=True)))
    )


def test_neighbours_are_put_together_in_their_order() -> None:
    (found,) = parts(X[:2], X[2:3], X[3:])
    assert found.batch.equal(X) and found.numbers == (0, 0, 1, 2, 2, 2, 2)
    assert found.select(slice(1, 4)).numbers == (0, 1, 2)


@pytest.mark.parametrize(("most", "expected"), [(1, [2, 1, 3]), (2, [2, 1, 3]), (3, [3, 3]), (5, [3, 3]), (6, [6])])
def test_no_more_than_allowed(most: int, expected: list[int]) -> None:
    assert [len(part.numbers) for part in parts(X[:2], X[2:3], X[3:6], most=most)] == expected


@pytest.mark.parametrize(("first", "second"), [
    (X, X.float()),
    (X, X[:, :2]),
    (X, (X,)),
    ((X,), [X]),
    ((X, "train"), (X, "test")),
    ((X, 1), (X, 1.0)),
    ((X, object()), (X, object())),
    ({"a": X}, {"b": X}),
    ({"a": X}, {"a": X, "b": X}),
    ((X, {"mask": X}), (X, {"mask": None})),
])  # fmt: skip
def test_batches_of_two_kinds_stay_apart(first: Any, second: Any) -> None:
    assert len(parts(first, second)) == 2


def test_a_batch_of_its_own_goes_on_before_the_next_is_read() -> None:
    read: list[int] = []

    def arriving() -> Iterator[tuple[Part, int]]:
        for k in range(3):
            read.append(k)
            yield Part(X[:2], (k, k)), 2

    for k, part in enumerate(join(arriving())):
        assert read == list(range(k + 1))
        assert part.numbers == (k, k)


def test_nested_batches_are_joined_tensor_by_tensor() -> None:
    shared = object()
    (found,) = parts((X[:2], {"mask": X[:2] > 0}, "on", shared), (X[2:], {"mask": X[2:] > 0}, "on", shared))
    x, inner, text, kept = found.batch
    assert x.equal(X) and inner["mask"].equal(X > 0) and (text, kept) == ("on", shared)


def test_a_loader_that_fills_the_same_memory_again_is_read_in_time(hooks: Hooks) -> None:
    model = nn.Linear(3, 2).double()
    generator = hooks(model)

    def loader() -> Iterator[Tensor]:
        buffer = torch.empty(2, 3, dtype=torch.float64)
        for start in (0, 2, 4):
            buffer.copy_(X[start : start + 2])
            yield buffer

    (found,) = generator.stream(loader())
    expected = output_jacobian(model, X[:6], ["weight", "bias"])
    assert relative_error(found.layers[""].to_dense(), expected) < 1e-14
    v = random_pvector(generator.layer_collection, dtype=torch.float64)
    assert (
        relative_error(
            generator.jvp(v, loader()).get_flat_representation(), generator.jvp(v, X[:6]).get_flat_representation()
        )
        < 1e-14
    )


@pytest.mark.parametrize("check", ["first-batch", "every-batch", "off"])
def test_products_and_matrices_do_not_depend_on_it(check: str, hooks: Hooks) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    generator = hooks(model, check=check)
    batches = [X[:1], X[1:3], X[3:]]
    F = fisher(model, X, [name for name, _ in model.named_parameters()], generator.likelihood.name)
    v = random_pvector(generator.layer_collection, dtype=torch.float64)
    found = generator.product(v, batches).get_flat_representation()
    assert relative_error(found, F @ v.get_flat_representation()) < 1e-12
    u = FVector(torch.randn(2, 7, dtype=torch.float64))
    pulled: PVector = generator.vjp(u, batches)
    assert relative_error(pulled.get_flat_representation(), generator.vjp(u, X).get_flat_representation()) < 1e-12
    assert [part.n_examples for part in generator.stream(batches)] == ([1, 2, 4] if check == "every-batch" else [7])


def test_a_budget_bounds_what_is_put_together(hooks: Hooks) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batches = list(X.split(1))
    counts = {
        budget: [part.n_examples for part in hooks(model, memory_budget=budget).stream(batches)]
        for budget in (1, 900, 10**6)
    }
    assert counts[1] == [1] * 14 and counts[10**6] == [7]
    assert max(counts[900]) < 7 and sum(counts[900]) == 7
