"""KernelRegression: against scikit-learn, and against gradient descent on the linearized model."""

import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from nngeo_core import FVector, GramMatrix, ShapeError, random_fvector
from nngeo_core.testing import relative_error
from nngeo_ntk import GaussianProcess, KernelPCA, KernelRegression, LinearizedModel

from .helpers import problem


@pytest.mark.parametrize("regul", [0.1, 3.0])
def test_it_is_scikit_learns_kernel_ridge(regul: float) -> None:
    p = problem()
    kernel = GramMatrix(p.case.model, p.train, "trace")
    cross = GramMatrix(p.case.model, p.test, "trace", loader2=p.train)
    ridge = KernelRidge(alpha=regul, kernel="precomputed")
    ridge.fit(kernel.get_dense_tensor()[0, :, 0].numpy(), p.targets.vector_repr.T.numpy())
    expected = torch.from_numpy(ridge.predict(cross.get_dense_tensor()[0, :, 0].numpy())).T
    found = KernelRegression(kernel, p.targets, regul).predict(cross)
    assert relative_error(found.vector_repr, expected) <= 1e-10


def test_with_all_outputs_it_is_kernel_ridge_over_their_product() -> None:
    p = problem()
    kernel, cross = (GramMatrix(p.case.model, x, loader2=y) for x, y in ((p.train, None), (p.test, p.train)))
    ridge = KernelRidge(alpha=0.5, kernel="precomputed")
    ridge.fit(p.kernel(p.train, p.train).numpy(), p.targets.get_flat_representation().numpy())
    expected = torch.from_numpy(ridge.predict(p.kernel(p.test, p.train).numpy())).view(3, 4)
    assert relative_error(KernelRegression(kernel, p.targets, 0.5).predict(cross).vector_repr, expected) <= 1e-10


def test_it_is_where_gradient_descent_on_the_damped_linearized_model_ends() -> None:
    p, regul = problem(), 0.5
    rows, columns = p.jacobian(p.train).flatten(0, 1), p.jacobian(p.test).flatten(0, 1)
    y, w = p.targets.get_flat_representation(), torch.zeros(rows.shape[1], dtype=torch.float64)
    rate = 1 / (torch.linalg.matrix_norm(rows, 2) ** 2 + regul)
    for _ in range(20_000):
        w -= rate * (rows.T @ (rows @ w - y) + regul * w)
    kernel, cross = (GramMatrix(p.case.model, x, loader2=z) for x, z in ((p.train, None), (p.test, p.train)))
    found = KernelRegression(kernel, p.targets, regul).predict(cross)
    assert relative_error(found.get_flat_representation(), columns @ w) <= 1e-8


def test_matrix_free_it_is_the_same() -> None:
    p = problem()
    fits = [KernelRegression(GramMatrix(p.case.model, p.train, kind), p.targets, 0.5) for kind in ("dense", "implicit")]
    assert relative_error(fits[1].dual.vector_repr, fits[0].dual.vector_repr) <= 1e-10


def test_targets_that_do_not_fit_are_refused() -> None:
    p = problem()
    kernel = GramMatrix(p.case.model, p.train)
    with pytest.raises(ShapeError, match=r"targets have shape \(7, 3\), expected \(3, 7\)"):
        KernelRegression(kernel, FVector(p.targets.vector_repr.T))
    with pytest.raises(TypeError, match="targets are an FVector"):
        KernelRegression(kernel, p.targets.vector_repr)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="regul is a finite number >= 0"):
        KernelRegression(kernel, p.targets, -1.0)
    fit = KernelRegression(kernel, p.targets, 1.0)
    with pytest.raises(
        ShapeError, match=r"the columns of the cross kernel are \(3, 4\) .*, and the kernel has \(3, 7\)"
    ):
        fit.predict(GramMatrix(p.case.model, p.train, loader2=p.test))
    with pytest.raises(ShapeError, match="targets have shape"):
        KernelRegression(kernel, random_fvector(8, 3))


def test_cross_kernels_of_another_kind_are_refused() -> None:
    p = problem()
    model, c = p.case.model, p.targets.size()[0]
    kernels = {kind: GramMatrix(model, p.train, kind) for kind in ("dense", "blockdiag", "trace", "implicit")}
    crosses = {kind: GramMatrix(model, p.test, kind, loader2=p.train) for kind in kernels}
    tests = {kind: GramMatrix(model, p.test, kind) for kind in kernels}
    alike = {"dense": "dense", "implicit": "dense"}
    start = p.outputs(p.test)
    for kind, kernel in kernels.items():
        fits = {"regression": KernelRegression(kernel, p.targets, 1.0).predict}
        if kind != "implicit":
            flow, process = (
                LinearizedModel(kernel, p.outputs(p.train), p.targets),
                GaussianProcess(kernel, p.targets, 1.0),
            )
            fits |= {"flow": lambda cross, flow=flow: flow.predict(cross, start), "mean": process.mean}
        for other, cross in crosses.items():
            for fit in fits.values():
                if alike.get(kind, kind) == alike.get(other, other):
                    assert fit(cross).size() == (c, len(p.test))
                    continue
                with pytest.raises((TypeError, ShapeError), match=f"compute both .*as '{kind}'"):
                    fit(cross)
    with pytest.raises((TypeError, ShapeError), match="compute both"):
        GaussianProcess(kernels["dense"], p.targets, 1.0).covariance(crosses["blockdiag"], tests["blockdiag"])
    with pytest.raises((TypeError, ShapeError), match="the rows of the cross kernel|compute both"):
        GaussianProcess(kernels["dense"], p.targets, 1.0).covariance(crosses["dense"], tests["trace"])
    with pytest.raises((TypeError, ShapeError), match="compute both"):
        KernelPCA(kernels["dense"]).project(crosses["trace"])
