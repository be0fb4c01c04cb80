"""FMat: what every function-space matrix inherits, on the smallest of them."""

import pytest
import torch
from torch import Tensor

from nngeo_core import FMat, FVector, KernelSpectrum, ShapeError, UnsupportedOperationError

C, N = 2, 3


class Doubled(FMat):
    """A multiple of the identity, twice it by default; nothing else of the algebra."""

    name = "doubled"

    def __init__(self, scale: float = 2.0, outputs: int = C) -> None:
        self.scale, self.outputs = scale, outputs

    def size(self) -> tuple[int, int, int, int]:
        return self.outputs, N, self.outputs, N

    dtype = torch.float32
    device = torch.device("cpu")

    def _mv(self, u: Tensor) -> Tensor:
        return self.scale * u

    def _trace(self) -> Tensor:
        return torch.tensor(self.scale * self.outputs * N)

    def _norm(self) -> Tensor:
        return torch.tensor(self.scale * (self.outputs * N) ** 0.5)

    def _solve(self, u: Tensor, regul: float) -> Tensor:
        return u / (self.scale + regul)

    def _eigendecomposition(self, k: int | None) -> KernelSpectrum:
        found = KernelSpectrum(torch.full((C * N,), self.scale), torch.eye(C * N).view(C * N, C, N))
        return found.leading(k)

    def _centered(self) -> "Doubled":
        return self

    def _add(self, other: "Doubled") -> "Doubled":
        return Doubled(self.scale + other.scale)

    def _scaled(self, scalar: float | Tensor) -> "Doubled":
        return Doubled(self.scale * float(scalar))

    def get_dense_tensor(self) -> Tensor:
        return self.scale * torch.eye(C * N).view(C, N, C, N)


class Other(Doubled):
    """A representation of its own."""


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


def test_arithmetic_comes_from_sums_and_multiples() -> None:
    kernel = Doubled()
    found = (kernel + kernel, kernel - 3 * kernel, kernel / 4, -kernel, kernel * torch.tensor(2.0))
    assert [one.scale for one in found] == [4.0, -4.0, 0.5, -2.0, 4.0]
    assert repr(kernel) == "Doubled(2 x 3 x 2 x 3, torch.float32, cpu)"
    assert kernel.kind == "fmat"


def test_eigenvectors_are_vectors_in_function_space() -> None:
    spectrum = Doubled().eigendecomposition(2)
    assert spectrum.values.tolist() == [2.0, 2.0]
    assert spectrum.vector(-1).size() == (C, N)
    u = torch.arange(6.0).view(C, N)
    assert spectrum.apply(spectrum.values, u).flatten().tolist() == [0, 0, 0, 0, 8, 10]


@pytest.mark.parametrize("shape", [(N, C), (C * N, 1), (C, N - 1)])
@pytest.mark.parametrize("operation", ["mv", "vTMv", "solve"])
def test_vectors_of_other_shapes_are_refused(operation: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected an FVector of shape \(2, 3\), got"):
        getattr(Doubled(), operation)(FVector(vector_repr=torch.ones(shape)))


@pytest.mark.parametrize("operation", ["mv", "vTMv", "solve"])
def test_tensors_are_refused(operation: str) -> None:
    with pytest.raises(TypeError, match=r"expected an FVector, got Tensor; FVector\(vector_repr=tensor\) makes one"):
        getattr(Doubled(), operation)(torch.ones(C, N))


def test_vectors_that_would_lose_digits_are_refused() -> None:
    with pytest.raises(TypeError, match=r"the vector is torch.float64 and the kernel torch.float32"):
        Doubled().mv(FVector(torch.ones(C, N, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (Other(), UnsupportedOperationError, "the sum with Other is not a Doubled; compute both kernels in one"),
        (Doubled(outputs=1), ShapeError, r"two kernels of one size, got \(2, 3, 2, 3\) and \(1, 3, 1, 3\)"),
        (torch.ones(2), TypeError, "the sum of Doubled with Tensor: expected another kernel"),
    ],
)
def test_strangers_are_not_added(other: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Doubled() + other


def test_what_a_representation_lacks_says_what_to_do() -> None:
    for attempt in (Doubled().inverse, Doubled().logdet):
        with pytest.raises(UnsupportedOperationError, match="is not a Doubled; "):
            attempt()


def test_it_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        FMat()  # type: ignore[abstract]
