"""The example plugins: their wheels, installed by pip beside ours, pass their own tests."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Environment = Any
"""What the fixture `make_environment` makes."""

PLUGINS = {
    path.parent.name: path.parent for path in sorted(Path(__file__).parents[2].glob("examples/plugins/*/LICENSE"))
}
PROVIDES = {
    "nngeo-chebyshev": "layer rule ChebyshevLinear",
    "nngeo-heteroscedastic": "likelihood heteroscedastic",
    "nngeo-tkfac": "pmat representation tkfac",
}


@pytest.fixture(scope="module")
def environment(make_environment: Callable[[], Environment]) -> Environment:
    """Everything of ours and every plugin."""
    environment = make_environment()
    environment.install("nngeo", *PLUGINS)
    return environment


@pytest.mark.parametrize("name", PLUGINS)
def test_its_readme_runs(environment: Environment, name: str) -> None:
    readme = (PLUGINS[name] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    environment.run("-c", code)


@pytest.mark.parametrize("name", PLUGINS)
def test_its_tests_pass_beside_what_is_built_in(environment: Environment, name: str, tmp_path: Path) -> None:
    tests = shutil.copytree(PLUGINS[name] / "tests", tmp_path / "tests")  # apart from the module that they test
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "--import-mode=importlib", f"--rootdir={tmp_path}"]
    printed = environment.run("-m", "pytest", *options, os.fspath(tests))
    assert " passed" in printed.splitlines()[-1]
    assert not {"failed", "skipped", "error"}.intersection(printed.splitlines()[-1].split())


def test_the_table_lists_them(environment: Environment) -> None:
    assert PROVIDES.keys() == PLUGINS.keys()
    lines = environment.command("nngeo", "plugins").splitlines()
    for name, provided in PROVIDES.items():
        (line,) = [line for line in lines if name in line]
        assert line.split()[-1] == "loaded"
        assert provided in line


def test_without_them_their_names_are_unknown(make_environment: Callable[[], Environment]) -> None:
    environment = make_environment()
    environment.install("nngeo")
    code = """
import torch
from nngeo import FIM, PluginError
try:
    FIM(torch.nn.Linear(2, 2), torch.zeros(1, 2), "dense", variant="heteroscedastic")
except PluginError as error:
    print(str(error).partition(";")[0])
"""
    assert environment.run("-c", code) == "unknown likelihood 'heteroscedastic'\n"
