"""FMat: what every function-space matrix inherits, on the smallest of them."""

import pytest
import torch
from torch import Tensor

from nngeo_core import FMat, FVector, ShapeError

C, N = 2, 3


class Doubled(FMat):
    """Twice the identity."""

    name = "doubled"

    def size(self) -> tuple[int, int, int, int]:
        return C, N, C, N

    def _mv(self, u: Tensor) -> Tensor:
        return 2 * u

    def trace(self) -> Tensor:
        return torch.tensor(2.0 * C * N)

    def get_dense_tensor(self) -> Tensor:
        return 2 * torch.eye(C * N).view(C, N, C, N)


def test_product_and_quadratic_form_agree_with_the_dense_tensor() -> None:
    u, kernel = torch.randn(C, N, requires_grad=True), Doubled()
    dense = torch.einsum("cnkm,km->cn", kernel.get_dense_tensor(), u)
    product = kernel.mv(FVector(vector_repr=u))
    assert isinstance(product, FVector)
    torch.testing.assert_close(product.vector_repr, dense)
    form = kernel.vTMv(FVector(vector_repr=u))
    torch.testing.assert_close(form, (u * dense).sum())
    (gradient,) = torch.autograd.grad(form, u)
    torch.testing.assert_close(gradient, 4 * u.detach())


def test_it_registers_as_a_kernel() -> None:
    assert Doubled.kind == "fmat"


@pytest.mark.parametrize("shape", [(N, C), (C * N,), (C, N, 1)])
@pytest.mark.parametrize("operation", ["mv", "vTMv"])
def test_vectors_of_other_shapes_are_refused(operation: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        getattr(Doubled(), operation)(FVector(vector_repr=torch.ones(shape)))


@pytest.mark.parametrize("operation", ["mv", "vTMv"])
def test_tensors_are_refused(operation: str) -> None:
    with pytest.raises(TypeError, match=r"expected an FVector, got Tensor; FVector\(vector_repr=tensor\) makes one"):
        getattr(Doubled(), operation)(torch.ones(C, N))


def test_it_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        FMat()  # type: ignore[abstract]
