"""FVector: arithmetic in function space against plain tensors."""

import operator

import pytest
import torch

from nngeo_core.errors import ShapeError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import LinearLayer
from nngeo_core.vectors.fvector import FVector, random_fvector
from nngeo_core.vectors.pvector import random_pvector


def draw(seed: int) -> FVector:
    return random_fvector(4, n_output=3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_random_fvector_has_outputs_first_and_follows_the_generator() -> None:
    f = draw(0)
    assert f.size() == (3, 4)
    assert torch.equal(f.vector_repr, draw(0).vector_repr)
    assert not torch.equal(f.vector_repr, draw(1).vector_repr)
    assert random_fvector(5).size() == (1, 5)


def test_flat_representation_is_row_major() -> None:
    f = FVector(torch.arange(6.0).view(3, 2).T)
    assert f.get_flat_representation().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_arithmetic_is_that_of_the_tensors(operation) -> None:
    f, g = draw(0), draw(1)
    expected = operation(f.vector_repr, g.vector_repr)
    assert torch.equal(operation(f, g).vector_repr, expected)
    assert torch.equal(operation(f, 3).vector_repr, operation(f.vector_repr, 3))
    in_place = getattr(operator, f"i{operation.__name__}")
    held = f.vector_repr
    assert in_place(f, g) is f
    assert f.vector_repr is held and torch.equal(held, expected)


def test_inner_product_and_norms() -> None:
    f, g = draw(0), draw(1)
    expected = (f.vector_repr * g.vector_repr).sum()
    torch.testing.assert_close(f @ g, expected, rtol=1e-14, atol=0)
    assert (f @ g).ndim == 0
    torch.testing.assert_close(f.norm() ** 2, f.dot(f), rtol=1e-14, atol=0)
    assert f.norm(float("inf")) == f.vector_repr.abs().max()


def test_graph_is_kept() -> None:
    outputs = draw(0).vector_repr.requires_grad_()
    (FVector(outputs) @ FVector(outputs)).backward()
    torch.testing.assert_close(outputs.grad, 2 * outputs.detach(), rtol=1e-14, atol=0)
    assert FVector(outputs).clone().vector_repr.requires_grad
    assert not FVector(outputs).detach().vector_repr.requires_grad


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="needs vector_repr, a tensor of shape"):
        FVector()
    with pytest.raises(ShapeError, match=r"outputs first, got \(3,\)"):
        FVector(torch.ones(3))
    with pytest.raises(ShapeError, match=r"got \(3, 4\) and \(1, 4\)"):
        draw(0) + random_fvector(4)
    with pytest.raises(ShapeError, match=r"got a tensor of shape \(3, 4\)"):
        draw(0) * torch.ones(3, 4)


def test_spaces_do_not_mix() -> None:
    v = random_pvector(LayerCollection({"fc": LinearLayer(3, 2)}))
    with pytest.raises(TypeError, match="a FVector combines with a FVector or a scalar, got PVector"):
        draw(0) + v
    with pytest.raises(TypeError, match="dot takes another FVector, got PVector"):
        draw(0).dot(v)
    with pytest.raises(TypeError, match="unsupported operand"):
        draw(0) @ v


def test_conversion_and_repr() -> None:
    f = draw(0)
    assert f.to(dtype=torch.float64) is f
    assert torch.equal(f.to(dtype=torch.float32).vector_repr, f.vector_repr.float())
    assert repr(f) == "FVector(c=3, n=4, torch.float64, cpu)"
