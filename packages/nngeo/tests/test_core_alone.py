"""nngeo-core with none of its siblings: it imports, and says what is missing."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import nngeo_core

BLOCKED = ("nngeo", "nngeo_generators", "nngeo_ntk", "nngeo_reprs")

PREAMBLE = f"""
import importlib.abc, importlib.metadata, sys
from pathlib import Path

class NoSibling(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoSibling())
assert not [d.name for d in importlib.metadata.distributions() if (d.name or "").startswith("nngeo")]
"""


@pytest.fixture
def alone(tmp_path: Path) -> list[Path]:
    """Folders for the path: everything installed here but nngeo's own distributions, and core's import package."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "nngeo" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    core = tmp_path / "core"
    core.mkdir()
    (core / "nngeo_core").symlink_to(Path(nngeo_core.__file__).parent)
    return [site, core]


def _run(folders: list[Path], code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTHONWARNINGS": ""}
    command = [sys.executable, "-S", "-c", PREAMBLE + code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_it_imports_and_fim_names_both_packages_to_install(alone: list[Path]) -> None:
    code = """
import torch
from nngeo_core import FIM, LayerCollection, LinearLayer, PluginError, PVector
layers = LayerCollection({"": LinearLayer(2, 3)})
print(PVector(layers, vector_repr=torch.ones(9)).norm().item())
try:
    FIM(torch.nn.Linear(2, 3), torch.ones(1, 2), "kfac", variant="classif_logits", layer_collection=layers)
except PluginError as error:
    print(error)
"""
    norm, message = _run(alone, code).splitlines()
    assert norm == "3.0"
    assert "unknown pmat representation 'kfac'" in message
    assert "pip install nngeo-reprs nngeo-generators" in message


def test_a_representation_without_a_generator_names_the_generators(alone: list[Path]) -> None:
    code = """
import torch
from nngeo_core import PluginError
from nngeo_core.plugins import registry
try:
    registry.generator("hooks")
except PluginError as error:
    print(error)
"""
    assert "pip install nngeo-generators" in _run(alone, code)


def test_importing_loads_no_plugin_and_no_test_tool(alone: list[Path]) -> None:
    code = """
import sys, nngeo_core
print("pytest" in sys.modules, nngeo_core.plugins.registry._roster)
"""
    assert _run(alone, code).split() == ["False", "None"]
