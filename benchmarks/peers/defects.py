"""Peers' known defects, each with the smallest case that shows it: why numbers are not compared there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.peers.report import Row


@dataclass(frozen=True)
class Defect:
    """A number that a peer gets wrong.

    Attributes:
        peer: Which library.
        what: The symptom.
        measure: What the peer says, and what it should say.
    """

    peer: str
    what: str
    measure: Callable[[], tuple[float, float]]


def damping() -> tuple[float, float]:
    """(M + r I)^-1 v for KFAC with one weight: M = 4, r = 1."""
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatKFAC
    from nngeometry.object.vector import PVector

    model = nn.Linear(1, 1, bias=False)
    matrix = FIM(model, _loader(torch.full((1, 1), 2.0)), PMatKFAC, "regression", function=model)
    v = PVector(matrix.generator.layer_collection, vector_repr=torch.ones(1))
    return float(matrix.solve(v, 1.0).to_torch()), 1 / 5


def low_rank() -> tuple[float, float]:
    """The part of a damped low-rank solution outside the span of the rows, which is v / r."""
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatLowRank
    from nngeometry.object.vector import PVector

    model = nn.Linear(2, 1, bias=False)
    matrix = FIM(model, _loader(torch.tensor([[1.0, 0.0]])), PMatLowRank, "regression", function=model)
    v = PVector(matrix.generator.layer_collection, vector_repr=torch.tensor([0.0, 1.0]))
    return float(matrix.solve(v, 0.5).to_torch()[1]), 2.0


def reused_module() -> tuple[float, float]:
    """The trace of F of a layer called twice in a row: y = w^2 x at w = x = 1."""
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    matrix = FIM(layer, _loader(torch.ones(1, 1)), PMatDiag, "regression", function=lambda d: layer(layer(d)))
    return float(matrix.trace()), 4.0


def confident_logits() -> tuple[float, float]:
    """The trace of F of a bias-free layer with confident logits, in float32."""
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    model = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[20.0], [0.0], [-1.0]]))
    p = model(torch.ones(1, 1)).detach().double().softmax(1)
    matrix = FIM(model, _loader(torch.ones(1, 1)), PMatDiag, function=model)
    return float(matrix.trace()), float((p - p.square()).sum())


def _loader(x: Tensor) -> torch.utils.data.DataLoader:  # type: ignore[type-arg]
    data = torch.utils.data.TensorDataset(x)
    return torch.utils.data.DataLoader(data, batch_size=len(x))


DEFECTS = [
    Defect("NNGeometry", "damped solution with KFAC, M = 4, r = 1", damping),
    Defect("NNGeometry", "damped low-rank solution outside the span", low_rank),
    Defect("NNGeometry", "trace of F of a layer called twice", reused_module),
    Defect("NNGeometry", "trace of F with confident logits in float32", confident_logits),
]


def measured_defects(absent: list[str]) -> list[Row]:
    """What each installed peer says in its cases."""
    rows = []
    for defect in DEFECTS:
        if defect.peer in absent:
            continue
        try:
            found, exact = defect.measure()
        except Exception as error:
            print(f"{defect.peer}, {defect.what}: raises {type(error).__name__}: {error}")
            continue
        rows.append({"peer": defect.peer, "what": defect.what, "found": found, "exact": exact})
    return rows
