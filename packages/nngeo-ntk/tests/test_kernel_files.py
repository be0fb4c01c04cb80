"""Stored kernels come back from files, copies and pickles bit for bit; implicit ones say why they cannot."""

import copy
import pickle
from pathlib import Path

import pytest
import torch

from nngeo_core import FMat, GramMatrix, UnsupportedOperationError
from nngeo_core.plugins import registry
from nngeo_core.testing import MODELS

CASE = MODELS["mlp"]()


@pytest.mark.parametrize("name", ["dense", "blockdiag", "trace"])
@pytest.mark.parametrize("others", [None, CASE.inputs[:2] + 1], ids=["gram", "cross"])
def test_a_kernel_is_the_same_in_a_file(tmp_path: Path, name: str, others: torch.Tensor | None) -> None:
    generator = registry.generator("hooks")(CASE.model, "regression")
    kernel = registry.representation(name, kind="fmat")(generator, examples=CASE.inputs, others=others)
    kernel.save(tmp_path / "kernel")
    for found in (FMat.load(tmp_path / "kernel"), copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert type(found) is type(kernel)
        assert (found.size(), found.symmetric, found.dtype) == (kernel.size(), others is None, torch.float64)
        assert torch.equal(found.data, kernel.data)
    assert copy.deepcopy(kernel).generator is generator
    assert FMat.load(tmp_path / "kernel", dtype=torch.float32).dtype == torch.float32


def test_an_implicit_kernel_says_why_it_cannot_be_saved(tmp_path: Path) -> None:
    kernel = GramMatrix(CASE.model, CASE.inputs, "implicit")
    with pytest.raises(UnsupportedOperationError, match="stores no numbers that could be written to a file"):
        kernel.save(tmp_path / "kernel")
    assert list(tmp_path.iterdir()) == []
