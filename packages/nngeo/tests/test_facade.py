"""The facade: every public name of the four packages, and nothing else."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import nngeo
import nngeo_core
import nngeo_generators
import nngeo_ntk
import nngeo_reprs

PACKAGES = [nngeo_core, nngeo_generators, nngeo_ntk, nngeo_reprs]


def test_the_names_are_those_of_the_four_packages() -> None:
    assert nngeo.__all__ == sorted({name for package in PACKAGES for name in package.__all__})


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_name_is_the_same_object(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(nngeo, name) is getattr(package, name)


@pytest.mark.parametrize("package", [nngeo, *PACKAGES], ids=lambda package: package.__name__)
def test_lists_are_sorted_and_versions_in_step(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert list(names) == sorted(names)
    assert package.__version__ == nngeo.__version__  # type: ignore[attr-defined]


def test_no_two_packages_share_a_name() -> None:
    names = [name for package in PACKAGES for name in package.__all__]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["FIM", "PMatDense", "PMatDiag", "PMatKFAC", "PVector", "FVector", "LayerCollection"])
def test_public_names_of_the_original(name: str) -> None:
    assert name in nngeo.__all__


def test_star_import_computes_a_fisher_matrix() -> None:
    names: dict[str, object] = {"model": nn.Linear(2, 3), "x": torch.randn(4, 2)}
    exec(
        "from nngeo import *\nF = FIM(model, x, PMatKFAC)\nv = random_pvector(F.layer_collection)\nform = F.vTMv(v)",
        names,
    )
    form = names["form"]
    assert isinstance(form, torch.Tensor)
    assert form.item() > 0


def test_the_command_lists_the_built_in_plugins() -> None:
    found = subprocess.run([sys.executable, "-m", "nngeo", "plugins"], capture_output=True, text=True, check=True)
    for distribution in ("nngeo-core", "nngeo-generators", "nngeo-reprs"):
        assert distribution in found.stdout
