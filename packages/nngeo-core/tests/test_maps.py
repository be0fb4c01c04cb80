"""PushForward and PullBack: two abstract maps, adjoint to one another, and what they multiply with."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nngeo_core import (
    FVector,
    JacobianMap,
    LayerCollection,
    LayerCollectionMismatchError,
    LinearLayer,
    PullBack,
    PushForward,
    PVector,
    ShapeError,
    UnsupportedOperationError,
)

LAYERS = LayerCollection({"fc": LinearLayer(2, 1)})
J = torch.arange(12.0).view(2, 2, 3)


class Stored(JacobianMap):
    name = "stored"
    generator = None
    examples = None
    layer_collection = LAYERS
    dtype = torch.float32
    device = torch.device("cpu")

    def size(self) -> tuple[int, int, int]:
        return 2, 2, 3

    def get_dense_tensor(self) -> Tensor:
        return J


class Push(Stored, PushForward):
    @property
    def T(self) -> PullBack:
        return Pull()

    def _mv(self, v: Tensor) -> Tensor:
        return J @ v


class Pull(Stored, PullBack):
    @property
    def T(self) -> PushForward:
        return Push()

    def _mv(self, u: Tensor) -> Tensor:
        return torch.einsum("cnd,cn->d", J, u)


V = PVector(LAYERS, vector_repr=torch.tensor([1.0, -2.0, 3.0]))
U = FVector(vector_repr=torch.tensor([[1.0, 0.0], [2.0, -1.0]]))


def test_the_maps_are_adjoint() -> None:
    assert ((Push() @ V) @ U).item() == (V @ (Push().T @ U)).item() != 0
    assert torch.equal((Push().T.T @ V).vector_repr, Push().mv(V).vector_repr)


def test_kinds_tell_them_apart() -> None:
    assert (PushForward.kind, PullBack.kind) == ("push_forward", "pull_back")
    assert repr(Push()) == "Push(2 outputs, 2 examples, 3 parameters, torch.float32, cpu)"


WRONG: list[tuple[JacobianMap, Any, type[Exception], str]] = [
    (
        Push(),
        PVector(LayerCollection({"fc": LinearLayer(1, 1)}), torch.ones(2)),
        LayerCollectionMismatchError,
        "differ",
    ),
    (Push(), U, TypeError, "a Push multiplies a vector or the other map: .*; got FVector"),
    (Pull(), V, TypeError, "a Pull multiplies a vector or the other map: .*; got PVector"),
    (Pull(), FVector(torch.ones(2, 3)), ShapeError, r"expected an FVector of shape \(2, 2\), got \(2, 3\)"),
    (Pull(), FVector(torch.ones(2, 2).double()), TypeError, "the vector is torch.float64 and the map torch.float32"),
    (Push(), Pull(), UnsupportedOperationError, "this Push was made from data; Jacobian"),
    (Pull(), Push(), UnsupportedOperationError, "this Pull was made from data; Jacobian"),
]


@pytest.mark.parametrize(("first", "second", "error", "message"), WRONG)
def test_what_does_not_fit_is_refused(first: Any, second: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        first @ second


def test_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="expected an FVector, got Tensor"):
        Pull().mv(torch.ones(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [PushForward, PullBack])
def test_they_are_abstract(kind: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        kind()
