"""PMat: what every representation inherits, on the smallest of them."""

import numpy
import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    Accumulator,
    JacobianBatch,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    PMat,
    PVector,
    ShapeError,
    UnsupportedOperationError,
)
from nngeo_core.plugins import registry
from nngeo_core.testing import Case, PMatAlgebraContract, PMatContract

LAYERS = LayerCollection({"fc": LinearLayer(2, 1)})


class TraceSum(Accumulator):
    def accumulate(self, batch: JacobianBatch) -> None:
        self.add("trace", torch.zeros((), dtype=batch.dtype))
        for jacobian in batch.layers.values():
            self.add("trace", jacobian.squared_norm())

    def finalize(self) -> Tensor:
        return self.sums["trace"] / self.n_examples / self.layer_collection.numel()


class PMatScalar(PMat):
    """A multiple of the identity with the trace of the Fisher matrix."""

    name = "scalar"
    accumulator = TraceSum
    data: Tensor

    def _checked(self, data: object) -> Tensor:
        if not isinstance(data, Tensor) or data.ndim:
            raise ShapeError("the data of a PMatScalar is a 0-dimensional tensor")
        return data

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    def _mv(self, v: Tensor) -> Tensor:
        return self.data * v

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return v / (self.data + regul)

    def _inverse(self, regul: float) -> "PMatScalar":
        self._unsupported("the inverse", "use solve")

    def _mm(self, other: "PMatScalar") -> "PMatScalar":
        return self._like(self.data * other.data)

    def _add(self, other: "PMatScalar") -> "PMatScalar":
        return self._like(self.data + other.data)

    def _scaled(self, scalar: float | Tensor) -> "PMatScalar":
        return self._like(self.data * scalar, n_examples=self.n_examples)

    def trace(self) -> Tensor:
        return self.data * self.size(0)

    def frobenius_norm(self) -> Tensor:
        return self.data.abs() * self.layer_collection.numel() ** 0.5

    def get_diag(self) -> Tensor:
        return self.data.expand(self.layer_collection.numel())

    def get_dense_tensor(self) -> Tensor:
        return self.get_diag().diag()


class TestPMatScalar(PMatContract):
    representation = PMatScalar
    unsupported = frozenset({"inverse"})

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        exact = super().dense_value(case, layers, variant)
        return exact.trace() / len(exact) * torch.eye(len(exact), dtype=exact.dtype)


class TestPMatScalarFromData(PMatAlgebraContract):
    unsupported = frozenset({"inverse"})

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        return PMatScalar(data=torch.tensor(seed + 0.5, dtype=torch.float64), layer_collection=layers)


def _scalar(value: float = 2.0, **options: object) -> PMatScalar:
    return PMatScalar(data=torch.tensor(value), layer_collection=LAYERS, **options)  # type: ignore[arg-type]


def test_repr() -> None:
    assert repr(_scalar()) == "PMatScalar(3 x 3, an unknown number of examples, torch.float32, cpu)"
    assert repr(_scalar(n_examples=7)) == "PMatScalar(3 x 3, 7 examples, torch.float32, cpu)"


def test_generator_and_data_without_a_collection_take_the_generator_s() -> None:
    model = nn.Linear(2, 1)
    generator = registry.generator("hooks")(model, registry.likelihood("regression")())
    matrix = PMatScalar(generator, data=torch.tensor(2.0))
    assert matrix.layer_collection is generator.layer_collection
    assert matrix.trace().item() == 6


def test_another_collection_than_the_generator_s_is_refused() -> None:
    generator = registry.generator("hooks")(nn.Linear(2, 1), registry.likelihood("regression")())
    with pytest.raises(LayerCollectionMismatchError):
        PMatScalar(generator, examples=torch.ones(1, 2), layer_collection=LAYERS)


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_shown_on_demand(progress: bool, capfd: pytest.CaptureFixture[str]) -> None:
    generator = registry.generator("hooks")(nn.Linear(2, 1), registry.likelihood("regression")())
    PMatScalar(generator, examples=torch.ones(4, 2), progress=progress)
    assert ("1/1" in capfd.readouterr().err) == progress


@pytest.mark.parametrize("factor", [numpy.float64(3), 3, torch.tensor(3.0)], ids=["numpy", "int", "tensor"])
def test_scalars_on_the_left(factor: float) -> None:
    multiple = factor * _scalar()
    assert isinstance(multiple, PMatScalar)
    assert multiple.trace().item() == 18


@pytest.mark.parametrize(
    ("factor", "name"), [("2", "str"), (torch.ones(3), "Tensor"), (None, "NoneType"), ([1], "list")]
)
def test_what_is_no_scalar_is_refused(factor: object, name: str) -> None:
    with pytest.raises(
        TypeError, match=f"a PMatScalar is multiplied by a number .*, got {name}; use mv for vectors and mm"
    ):
        _scalar() * factor  # type: ignore[operator]


def test_combinations_forget_the_number_of_examples_and_keep_the_generator() -> None:
    generator = registry.generator("hooks")(nn.Linear(2, 1), registry.likelihood("regression")())
    matrix = PMatScalar(generator, examples=torch.ones(4, 2))
    assert ((2 * matrix).n_examples, (matrix + matrix).n_examples, matrix.mm(matrix).n_examples) == (4, None, None)
    assert (matrix + matrix).generator is generator


def test_vectors_of_the_same_layers_made_apart_are_accepted() -> None:
    v = PVector(LayerCollection({"fc": LinearLayer(2, 1)}), dict_repr={"fc": (torch.ones(1, 2), torch.ones(1))})
    assert _scalar().mv(v).get_flat_representation().tolist() == [2, 2, 2]


def test_an_unsupported_operation_says_what_to_call_instead() -> None:
    with pytest.raises(UnsupportedOperationError, match="^the inverse is not a PMatScalar; use solve$"):
        _scalar().inverse()
