"""A linear map as scipy's solvers take it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["scipy_operator"]


def scipy_operator(
    apply: Callable[[Tensor], Tensor],
    apply_transposed: Callable[[Tensor], Tensor],
    size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """A `scipy.sparse.linalg.LinearOperator` of shape (size, size) around two functions of rows (k, size).

    Args:
        apply: M v for each row v.
        apply_transposed: M^T v for each row v.
        size: d.
        dtype: What the functions take.
        device: Where they take it.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.sparse.linalg import LinearOperator
    except ImportError as error:
        raise ImportError("to_scipy() needs scipy; install it with: pip install 'nngeo-core[scipy]'") from error

    def on_columns(act: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        def run(columns: Any) -> Any:
            rows = torch.as_tensor(columns.reshape(size, -1).T.copy(), dtype=dtype, device=device)
            return act(rows).detach().T.cpu().numpy().reshape(columns.shape)

        return run

    forward, backward = on_columns(apply), on_columns(apply_transposed)
    return LinearOperator(
        (size, size),
        matvec=forward,
        rmatvec=backward,
        matmat=forward,
        rmatmat=backward,
        dtype=torch.empty((), dtype=dtype, device="cpu").numpy().dtype,
    )
