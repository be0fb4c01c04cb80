"""Function space: exact finite-width neural tangent kernels, maps between parameters and outputs, and kernel tools."""

from nngeo_ntk.alignment import kernel_alignment, target_alignment
from nngeo_ntk.binary import binary_function
from nngeo_ntk.block_diag import FMatBlockDiag
from nngeo_ntk.dense import FMatDense
from nngeo_ntk.dense_jacobian import PullBackDense, PushForwardDense
from nngeo_ntk.evolution import KernelSnapshot, kernel_evolution
from nngeo_ntk.gaussian_process import GaussianProcess
from nngeo_ntk.implicit import FMatImplicit
from nngeo_ntk.implicit_jacobian import PullBackImplicit, PushForwardImplicit
from nngeo_ntk.kernel_pca import KernelPCA
from nngeo_ntk.layer_kernels import layer_kernels
from nngeo_ntk.linearized import LinearizedModel
from nngeo_ntk.plots import plot_evolution, plot_gram, plot_kernel_pca, plot_spectrum
from nngeo_ntk.regression import KernelRegression
from nngeo_ntk.spectrum import effective_rank, participation_ratio
from nngeo_ntk.trace import FMatTrace

__version__ = "0.1.0"

__all__ = [
    "FMatBlockDiag",
    "FMatDense",
    "FMatImplicit",
    "FMatTrace",
    "GaussianProcess",
    "KernelPCA",
    "KernelRegression",
    "KernelSnapshot",
    "LinearizedModel",
    "PullBackDense",
    "PullBackImplicit",
    "PushForwardDense",
    "PushForwardImplicit",
    "binary_function",
    "effective_rank",
    "kernel_alignment",
    "kernel_evolution",
    "layer_kernels",
    "participation_ratio",
    "plot_evolution",
    "plot_gram",
    "plot_kernel_pca",
    "plot_spectrum",
    "target_alignment",
]
