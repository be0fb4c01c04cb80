"""Function space: exact finite-width neural tangent kernels, and the maps between parameters and outputs."""

from nngeo_ntk.block_diag import FMatBlockDiag
from nngeo_ntk.dense import FMatDense
from nngeo_ntk.dense_jacobian import PullBackDense, PushForwardDense
from nngeo_ntk.implicit import FMatImplicit
from nngeo_ntk.implicit_jacobian import PullBackImplicit, PushForwardImplicit
from nngeo_ntk.trace import FMatTrace

__version__ = "0.1.0"

__all__ = [
    "FMatBlockDiag",
    "FMatDense",
    "FMatImplicit",
    "FMatTrace",
    "PullBackDense",
    "PullBackImplicit",
    "PushForwardDense",
    "PushForwardImplicit",
]
