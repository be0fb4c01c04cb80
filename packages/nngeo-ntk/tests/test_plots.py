"""Plots: what they show, and what they say without matplotlib."""

import sys
from collections.abc import Iterator

import pytest
import torch

from nngeo_core import GramMatrix
from nngeo_ntk import FMatTrace, KernelPCA, kernel_evolution, plot_evolution, plot_gram, plot_kernel_pca, plot_spectrum

from .helpers import problem

KERNEL = FMatTrace(data=torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 4.0]]))


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    """No window, and no figure left open."""
    import matplotlib

    matplotlib.use("Agg")
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_the_gram_matrix_is_sorted_by_class() -> None:
    shown = plot_gram(KERNEL, torch.tensor([1, 0, 1])).images[0].get_array()
    assert shown.tolist() == [[3, 1, 0], [1, 2, 0], [0, 0, 4]]
    assert len(plot_gram(KERNEL, torch.tensor([1, 0, 1])).lines) == 2
    p = problem()
    whole = GramMatrix(p.case.model, p.train)
    assert plot_gram(whole).images[0].get_array().shape == (21, 21)


def test_the_spectrum_leaves_zeros_out() -> None:
    ax = plot_spectrum(FMatTrace(data=torch.diag(torch.tensor([1.0, 0.0, 3.0]))), label="start")
    assert ax.lines[0].get_ydata().tolist() == [3, 1]
    assert (ax.get_yscale(), ax.lines[0].get_label()) == ("log", "start")


def test_components_are_drawn_with_their_classes() -> None:
    ax = plot_kernel_pca(KernelPCA(KERNEL), torch.tensor([0, 1, 1]))
    drawn = ax.collections[0]
    assert torch.equal(torch.from_numpy(drawn.get_offsets().data.copy()), KernelPCA(KERNEL).projections[:, 0].T)
    assert drawn.get_array().tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="a plane has two components"):
        plot_kernel_pca(KernelPCA(KERNEL, 1))


def test_the_evolution_has_a_line_for_each_alignment() -> None:
    p = problem()
    snapshots = kernel_evolution(p.case.model, [p.case.model.state_dict()], p.train, p.targets)
    ax = plot_evolution(snapshots, times=[5])
    assert [line.get_xdata()[0] for line in ax.lines] == [5, 5]
    assert ax.lines[0].get_ydata()[0] == pytest.approx(float(snapshots[0].target_alignment or 0))
    without = kernel_evolution(p.case.model, [p.case.model.state_dict()], p.train)
    assert len(plot_evolution(without).lines) == 1


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'nngeo-ntk\[plots\]'"):
        plot_gram(KERNEL)
