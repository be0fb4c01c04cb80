"""A small regression problem, its Jacobians from plain autograd, and kernels of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nngeo_core import FVector
from nngeo_core.testing import MODELS, Case, output_jacobian


@dataclass(frozen=True)
class Problem:
    """Training and test examples of a model, with targets, outputs (c, n) and Jacobians (c, n, d)."""

    case: Case
    train: Tensor
    test: Tensor
    targets: FVector

    def jacobian(self, inputs: Tensor) -> Tensor:
        return output_jacobian(self.case.model, inputs, [name for name, _ in self.case.model.named_parameters()])

    def outputs(self, inputs: Tensor) -> FVector:
        with torch.no_grad():
            return FVector(self.case.model(inputs).T)

    def kernel(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(c n, c m) from plain autograd."""
        first, second = self.jacobian(rows).flatten(0, 1), self.jacobian(columns).flatten(0, 1)
        return first @ second.T


def problem(model: str = "mlp", n_test: int = 4) -> Problem:
    case, source = MODELS[model](), torch.Generator().manual_seed(1)
    inputs = torch.randn(n_test, *case.inputs.shape[1:], dtype=torch.float64, generator=source)
    targets = torch.randn(case.n_output, len(case.inputs), dtype=torch.float64, generator=source)
    return Problem(case, case.inputs, inputs, FVector(targets))
