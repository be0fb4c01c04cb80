"""bdot: dot products of rows."""

import pytest
import torch

from nngeo_core import ShapeError, bdot


def test_rows_are_multiplied() -> None:
    first, second = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = torch.stack([a @ b for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(bdot(first, second), expected, rtol=1e-14, atol=1e-14)
    assert bdot(first[:0], second[:0]).shape == (0,)


def test_it_is_differentiable() -> None:
    first, second = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(bdot, (first, second))


@pytest.mark.parametrize(
    ("first", "second"), [((3,), (3,)), ((2, 3), (1, 3)), ((2, 3), (3, 2)), ((2, 3, 1), (2, 3, 1))]
)
def test_other_shapes_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"two tensors of one shape \(n, k\), got \("):
        bdot(torch.ones(first), torch.ones(second))
