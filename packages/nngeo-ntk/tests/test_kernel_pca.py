"""KernelPCA: against scikit-learn, and against the features themselves."""

import pytest
import torch
from sklearn.decomposition import KernelPCA as Reference

from nngeo_core import GramMatrix
from nngeo_core.testing import relative_error
from nngeo_ntk import FMatTrace, KernelPCA

from .helpers import problem


def test_it_is_scikit_learns_up_to_signs() -> None:
    p = problem()
    kernel = GramMatrix(p.case.model, p.train, "trace")
    cross = GramMatrix(p.case.model, p.test, "trace", loader2=p.train)
    reference = Reference(n_components=3, kernel="precomputed")
    expected = torch.from_numpy(reference.fit_transform(kernel.get_dense_tensor()[0, :, 0].numpy())).T
    others = torch.from_numpy(reference.transform(cross.get_dense_tensor()[0, :, 0].numpy())).T
    found = KernelPCA(kernel, 3)
    signs = (found.projections[:, 0] * expected).sum(1, keepdim=True).sign()
    assert relative_error(found.projections[:, 0] * signs, expected) <= 1e-10
    assert relative_error(found.project(cross)[:, 0] * signs, others) <= 1e-10
    assert relative_error(found.values, torch.from_numpy(reference.eigenvalues_)) <= 1e-10


def test_with_several_outputs_every_outputs_features_are_centred() -> None:
    p = problem()
    rows, others = p.jacobian(p.train), p.jacobian(p.test)
    mean = rows.mean(1, keepdim=True)
    u, s, components = torch.linalg.svd((rows - mean).flatten(0, 1), full_matrices=False)
    found = KernelPCA(GramMatrix(p.case.model, p.train), 2)
    assert relative_error(found.values, s[:2].square()) <= 1e-10
    projected = torch.einsum("cnd,kd->kcn", others - mean, components[:2])
    signs = (found.projections.flatten(1) * u.T[:2]).sum(1).sign().view(2, 1, 1)
    cross = GramMatrix(p.case.model, p.test, loader2=p.train)
    assert relative_error(found.project(cross) * signs, projected) <= 1e-9


def test_components_without_variance_are_zero() -> None:
    found = KernelPCA(FMatTrace(data=torch.ones(2, 2)), 2)
    assert found.values.tolist() == [0, 0]
    assert not found.projections.any()
    assert not found.project(FMatTrace(data=torch.ones(1, 2))).any()


def test_more_components_than_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 2; got 3"):
        KernelPCA(FMatTrace(data=torch.eye(2)), 3)
