"""How a kernel changes along training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nngeo_core.matrices.fmat import FMat
from nngeo_core.plugins import registry
from nngeo_core.vectors.fvector import FVector
from nngeo_core.verbs.gram import GramMatrix
from nngeo_ntk.alignment import kernel_alignment, target_alignment
from nngeo_ntk.recorded import Recorded
from nngeo_ntk.spectrum import effective_rank

__all__ = ["KernelSnapshot", "kernel_evolution"]


@dataclass(frozen=True, eq=False)
class KernelSnapshot:
    """The kernel at one checkpoint.

    Attributes:
        kernel: K.
        values: Its eigenvalues, ascending, shape (c n,).
        effective_rank: exp of their entropy, 0-dimensional.
        target_alignment: Centred alignment with the targets, 0-dimensional; None without targets.
        first_alignment: Centred alignment with the first checkpoint's kernel, 0-dimensional.
    """

    kernel: FMat
    values: Tensor
    effective_rank: Tensor
    target_alignment: Tensor | None
    first_alignment: Tensor


def kernel_evolution(
    model: nn.Module,
    checkpoints: Iterable[Mapping[str, Any]],
    loader: Any,
    targets: FVector | None = None,
    representation: str = "dense",
    function: Callable[..., Any] | None = None,
    **options: Any,
) -> list[KernelSnapshot]:
    """The kernel of the same examples at every checkpoint (Baratin et al. 2021 on how it aligns with the targets).

    The model has its own parameters again afterwards, also when an exception ends it.

    Args:
        model: The network.
        checkpoints: State dictionaries, each a copy: `{k: v.clone() for k, v in model.state_dict().items()}`.
        loader: A loader of batches, or one batch; read once for all checkpoints.
        targets: y, shape (c, n), in the order of the examples.
        representation: "dense", "blockdiag" or "trace".
        function: Maps a batch to outputs, such as `binary_function(model, 3, 5)`.
        **options: Of `GramMatrix`.

    Raises:
        ValueError: There are no checkpoints.
    """
    generator = registry.generator("hooks")(model, "regression", function)
    examples, found = Recorded.of(generator, loader), list[KernelSnapshot]()
    with _restored(model):
        for state in checkpoints:
            model.load_state_dict(state)
            kernel = GramMatrix(model, examples, representation, function, **options)
            found.append(_snapshot(kernel, found[0].kernel if found else kernel, targets))
    if not found:
        raise ValueError("no checkpoints: give at least one state dictionary")
    return found


def _snapshot(kernel: FMat, first: FMat, targets: FVector | None) -> KernelSnapshot:
    aligned = None if targets is None else target_alignment(kernel, targets)
    values = kernel.eigendecomposition().values
    return KernelSnapshot(kernel, values, effective_rank(kernel), aligned, kernel_alignment(kernel, first))


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            model.load_state_dict(before)
