"""What nngeo-ntk registers: kernels, and the maps between parameters and outputs."""

from typing import Any

from nngeo_core.plugins import hookimpl
from nngeo_ntk.block_diag import FMatBlockDiag
from nngeo_ntk.dense import FMatDense
from nngeo_ntk.dense_jacobian import PullBackDense, PushForwardDense
from nngeo_ntk.implicit import FMatImplicit
from nngeo_ntk.implicit_jacobian import PullBackImplicit, PushForwardImplicit
from nngeo_ntk.trace import FMatTrace

__all__ = ["nngeo_representations"]


@hookimpl
def nngeo_representations() -> list[type[Any]]:
    """Kernels by name: `blockdiag`, `dense`, `implicit`, `trace`; push-forwards and pull-backs: `dense`, `implicit`."""
    kernels = [FMatBlockDiag, FMatDense, FMatImplicit, FMatTrace]
    return [*kernels, PullBackDense, PullBackImplicit, PushForwardDense, PushForwardImplicit]
