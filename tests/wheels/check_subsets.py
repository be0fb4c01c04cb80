"""Every subset of the packages installs in one call of pip, works, and names the distributions that it lacks."""

from typing import Any

import pytest

Environment = Any
"""What the fixture `environment` makes."""

IMPORTS = """
import torch
from torch import nn
from nngeo_core import FIM, LayerCollection, LinearLayer, PluginError, PVector, UnsupportedLayerError
from nngeo_core.plugins import registry
from nngeo_core.testing import fisher, relative_error

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
names = [name for name, _ in model.named_parameters()]
x = torch.randn(5, 3)

def complaint(call):
    try:
        call()
    except (PluginError, UnsupportedLayerError) as error:
        return str(error)
    raise AssertionError("nothing was raised")

def lacking(call):
    return complaint(call).partition("(pip install ")[2].partition(")")[0]
"""


def lines(environment: Environment, code: str) -> list[str]:
    """What a program prints that has the imports above."""
    printed: str = environment.run("-c", IMPORTS + code)
    return printed.splitlines()


def test_the_core_alone(environment: Environment) -> None:
    environment.install("nngeo-core")
    found = lines(
        environment,
        """
layers = LayerCollection({"fc": LinearLayer(3, 2)})
print(PVector(layers, vector_repr=torch.ones(8)).norm().square().item())
print(lacking(lambda: FIM(model, x, "kfac", variant="regression", layer_collection=layers)))
print(lacking(lambda: registry.generator("hooks")))
print(lacking(lambda: registry.representation("dense", kind="fmat")))
print("come with nngeo-generators" in complaint(lambda: LayerCollection.from_model(model)))
print(registry.likelihood("regression").__name__)
""",
    )
    assert found == [
        "8.000000000000002",
        "nngeo-reprs nngeo-generators",
        "nngeo-generators",
        "nngeo-ntk",
        "True",
        "GaussianLikelihood",
    ]
    table = environment.run("-m", "nngeo_core", "plugins").splitlines()
    assert [line.split()[:3] for line in table[1:2]] == [["nngeo-core", "nngeo-core", "0.1.0"]]
    assert not any("nngeo-reprs" in line for line in table)
    assert not (environment.commands / "nngeo").exists()


def test_the_core_and_representations(environment: Environment) -> None:
    """KFAC from its factors, with no generator; examples ask for one."""
    environment.install("nngeo-core", "nngeo-reprs")
    found = lines(
        environment,
        """
layers = LayerCollection({"fc": LinearLayer(2, 3)})
A, G = (root @ root.T for root in (torch.randn(3, 3), torch.randn(3, 3)))
F = registry.representation("kfac")(data={"fc": (A, G)}, layer_collection=layers)
v = torch.randn(9)
solution = F.solve(PVector(layers, vector_repr=v), regul=0.1).get_flat_representation()
dense = F.get_dense_tensor()
print(relative_error(solution, torch.linalg.solve(dense + 0.1 * torch.eye(9), v)) < 1e-10)
print(relative_error(dense.trace(), A.trace() * G.trace()) < 1e-10)
print(lacking(lambda: FIM(model, x, "kfac", layer_collection=layers)))
print(lacking(lambda: registry.generator("hooks")))
""",
    )
    assert found == ["True", "True", "nngeo-generators", "nngeo-generators"]


PRODUCT = """
generator = registry.generator("hooks")(model, "classif_logits")
v = torch.randn(26)
found = generator.product(PVector(generator.layer_collection, vector_repr=v), x).get_flat_representation()
print(relative_error(found, fisher(model, x, names, "classif_logits") @ v) < 1e-10)
"""


def test_the_core_and_generators(environment: Environment) -> None:
    """Products without a matrix; matrices ask for representations."""
    environment.install("nngeo-core", "nngeo-generators")
    missing = """
print(lacking(lambda: FIM(model, x, "kfac")))
print(lacking(lambda: registry.representation("dense", kind="fmat")))
"""
    assert lines(environment, PRODUCT + missing) == ["True", "nngeo-reprs", "nngeo-ntk"]


def test_the_core_generators_and_function_space(environment: Environment) -> None:
    environment.install("nngeo-core", "nngeo-generators", "nngeo-ntk")
    missing = """
from nngeo_core import GramMatrix, Jacobian
K, J = GramMatrix(model, x, "dense"), Jacobian(model, x)
print(type(K).__module__, K.size()[1], lacking(lambda: FIM(model, x, "kfac")), lacking(lambda: J.T @ J))
"""
    assert lines(environment, PRODUCT + missing) == ["True", "nngeo_ntk.dense 5 nngeo-reprs nngeo-reprs"]


def test_the_core_generators_and_representations(environment: Environment) -> None:
    environment.install("nngeo-core", "nngeo-generators", "nngeo-reprs")
    code = """
dense, kfac = FIM(model, x, ["dense", "kfac"])
print(relative_error(dense.get_dense_tensor(), fisher(model, x, names, "classif_logits")) < 1e-10)
print(type(kfac).__name__, kfac.size())
print(lacking(lambda: registry.representation("dense", kind="fmat")))
"""
    assert lines(environment, PRODUCT + code) == ["True", "True", "PMatKFAC (26, 26)", "nngeo-ntk"]


def test_everything_comes_with_the_facade(environment: Environment) -> None:
    environment.install("nngeo")
    code = """
import nngeo
F = nngeo.FIM(model, x, nngeo.PMatDense)
print(relative_error(F.get_dense_tensor(), fisher(model, x, names, "classif_logits")) < 1e-10)
print(complaint(lambda: registry.representation("no-such-name")).partition(";")[0])
"""
    assert lines(environment, PRODUCT + code) == ["True", "True", "unknown pmat representation 'no-such-name'"]
    table = environment.run("-m", "nngeo", "plugins")
    assert [environment.command("nngeo", "plugins"), environment.run("-m", "nngeo_core", "plugins")] == [table] * 2
    plugins = [line.split()[0] for line in table.splitlines()[1:] if not line.startswith(" ")]
    assert plugins == ["nngeo-core", "nngeo-generators", "nngeo-ntk", "nngeo-reprs"]


@pytest.mark.parametrize("name", ["nngeo-reprs", "nngeo-generators", "nngeo-ntk"])
def test_a_package_brings_the_core_of_its_own_version(environment: Environment, name: str) -> None:
    environment.install(name)
    code = """
import sys, nngeo_core
from importlib.metadata import distributions
print(*sorted(found.name for found in distributions() if "nngeo" in found.name))
print(nngeo_core.__file__.startswith(sys.prefix), torch.__file__.startswith(sys.prefix))
"""
    assert lines(environment, code) == [" ".join(sorted(["nngeo-core", name])), "True False"]
