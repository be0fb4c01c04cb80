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
    UnsupportedOperationError,
)
from nngeo_core.plugins import registry
from nngeo_core.testing import OPTIONAL_OPERATIONS, Case, PMatAlgebraContract, PMatContract

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

    def _data_shape(self) -> tuple[()]:
        return ()

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
    unsupported = OPTIONAL_OPERATIONS | {"inverse"}

    def dense_value(self, case: Case, layers: LayerCollection, variant: str) -> Tensor:
        exact = super().dense_value(case, layers, variant)
        return exact.trace() / len(exact) * torch.eye(len(exact), dtype=exact.dtype)


class TestPMatScalarFromData(PMatAlgebraContract):
    unsupported = OPTIONAL_OPERATIONS | {"inverse"}

    def build(self, layers: LayerCollection, seed: int) -> PMat:
        return PMatScalar(data=torch.tensor(seed + 0.5, dtype=torch.float64), layer_collection=layers)


def _scalar(value: float = 2.0, **options: object) -> PMatScalar:
    return PMatScalar(data=torch.tensor(value), layer_collection=LAYERS, **options)  # type: ignore[arg-type]


def test_repr() -> None:
    assert repr(_scalar()) == "PMatScalar(3 x 3, an unknown number of examples, 4 bytes, torch.float32, cpu)"
    known = _scalar(n_examples=7, likelihood="poisson")
    assert repr(known) == "PMatScalar(3 x 3, 7 examples, poisson, 4 bytes, torch.float32, cpu)"


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


def test_two_matrices_are_multiplied() -> None:
    assert torch.equal((_scalar() @ _scalar()).get_dense_tensor(), _scalar().mm(_scalar()).get_dense_tensor())


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


def test_an_average_with_new_examples() -> None:
    """`update` mixes in place, counts the examples, and checks what it is given."""
    model = nn.Linear(2, 1)
    generator = registry.generator("hooks")(model, registry.likelihood("regression")())
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    matrix = PMatScalar(generator, examples=x)
    expected = 0.75 * matrix.trace() + 0.25 * PMatScalar(generator, examples=y).trace()
    matrix.update(y, decay=0.75)
    assert torch.allclose(matrix.trace(), expected) and matrix.n_examples == 3
    for decay in (-0.1, 1.5, True, "1"):
        with pytest.raises(ValueError, match="decay is the weight of the old matrix, between 0 and 1; got"):
            matrix.update(y, decay)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no generator"):
        _scalar().update(y, 0.5)


def test_conversions_name_what_is_possible() -> None:
    matrix = _scalar()
    assert matrix.convert("dense").trace() == matrix.trace()
    assert matrix.convert("blockdiag").convert("diag").get_diag().tolist() == [2.0, 2.0, 2.0]
    assert matrix.convert(PMatScalar) is matrix
    with pytest.raises(UnsupportedOperationError, match="a PMatScalar cannot be made a PMatKFAC"):
        matrix.convert("kfac")
    with pytest.raises(TypeError, match="convert takes a registered name or a PMat class, got 3"):
        matrix.convert(3)  # type: ignore[arg-type]
