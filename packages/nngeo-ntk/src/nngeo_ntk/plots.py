"""Pictures of kernels, spectra, principal components and their evolution; matplotlib is imported when one is drawn."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nngeo_core.matrices.fmat import FMat
from nngeo_ntk.evolution import KernelSnapshot
from nngeo_ntk.kernel_pca import KernelPCA

__all__ = ["plot_evolution", "plot_gram", "plot_kernel_pca", "plot_spectrum"]


def plot_gram(kernel: FMat, labels: Tensor | None = None, ax: Any = None) -> Any:
    """The entries of a kernel as an image, outputs in blocks.

    Args:
        kernel: K.
        labels: Shape (n,): examples are sorted by them within each output, and lines drawn between classes; None keeps the
            order.
        ax: Where to draw; None for a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    ax = _axes(ax)
    entries = kernel.get_dense_tensor().detach().cpu()
    c, n, k, m = entries.shape
    if labels is not None:
        order = labels.detach().cpu().argsort(stable=True)
        entries = entries[:, order][:, :, :, order]
        for edge in (labels[order].diff() != 0).nonzero().flatten().tolist() if c == 1 else []:
            ax.axhline(edge + 0.5, color="white", linewidth=0.5)
            ax.axvline(edge + 0.5, color="white", linewidth=0.5)
    ax.imshow(entries.reshape(c * n, k * m).numpy(), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def plot_spectrum(kernel: FMat, ax: Any = None, **style: Any) -> Any:
    """The positive eigenvalues of a kernel, largest first, on a logarithmic scale.

    Args:
        kernel: K.
        ax: Where to draw; None for a new figure.
        **style: Of matplotlib's `plot`, such as `label`.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    ax = _axes(ax)
    values = kernel.eigendecomposition().values.detach().cpu().flip(0)
    values = values[values > 0]
    ax.plot(torch.arange(1, len(values) + 1, device="cpu").numpy(), values.numpy(), **style)
    ax.set_yscale("log")
    ax.set_xlabel("eigenvalue")
    return ax


def plot_kernel_pca(components: KernelPCA, labels: Tensor | None = None, ax: Any = None) -> Any:
    """Examples in the plane of the two leading components of the tangent features, for each output.

    Args:
        components: With at least two of them.
        labels: Shape (n,), the colours; None for one colour.
        ax: Where to draw; None for a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: There is one component only.
        ImportError: matplotlib is not installed.
    """
    if len(components.values) < 2:
        raise ValueError("a plane has two components; KernelPCA(kernel, k=2) has them")
    ax = _axes(ax)
    x, y = components.projections[:2].detach().cpu().flatten(1).numpy()
    outputs = components.projections.shape[1]
    colors = None if labels is None else labels.detach().cpu().repeat(outputs).numpy()
    ax.scatter(x, y, c=colors, s=8, cmap="coolwarm")
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def plot_evolution(snapshots: Sequence[KernelSnapshot], times: Sequence[float] | None = None, ax: Any = None) -> Any:
    """Alignment with the targets and with the first kernel along training.

    Args:
        snapshots: From `kernel_evolution`.
        times: Where on the axis each stands, such as epochs; None numbers them.
        ax: Where to draw; None for a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    ax = _axes(ax)
    places = list(range(len(snapshots))) if times is None else list(times)
    targets = [float(one.target_alignment) for one in snapshots if one.target_alignment is not None]
    if targets:
        ax.plot(places, targets, marker="o", label="with the targets")
    ax.plot(places, [float(one.first_alignment) for one in snapshots], marker="o", label="with the first kernel")
    ax.set_ylabel("centred alignment")
    ax.legend()
    return ax


def _axes(ax: Any) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with: pip install 'nngeo-ntk[plots]'") from error
    return pyplot.subplots()[1] if ax is None else ax
