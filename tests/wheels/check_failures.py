"""Broken plugins, installed by pip beside everything of ours: computations that do not need them go on, errors name them."""

import base64
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Environment = Any
"""What the fixture `make_environment` makes."""

RULE = """
from torch import nn

class Rule:
    name, module_types, jacobian, overrides = "theirs", (nn.{type},), None, {overrides}

@hookimpl
def nngeo_layer_rules():
    return [Rule()]
"""

STRIPED = """
class Striped:
    kind, name, owner = "pmat", "striped", __name__

@hookimpl
def nngeo_representations():
    return [Striped]
"""

LINEAR = """
from nngeo_generators.rules.linear import LinearRule

class Theirs(LinearRule):
    name, overrides = "theirs", ("nngeo-generators",)

@hookimpl
def nngeo_layer_rules():
    return [Theirs()]
"""

PLUGINS = {
    "broken-import": "import a_module_that_is_not_there",
    "wrong-signature": "@hookimpl\ndef nngeo_generators(model): return []",
    "misspelt-hook": "@hookimpl\ndef nngeo_generater(): return []",
    "raising-hook": "@hookimpl\ndef nngeo_likelihoods(): raise OSError('no disk')",
    "raising-late": "@hookimpl(tryfirst=True)\ndef nngeo_resolve_rule(module): raise OSError('no memory')",
    "other-version": "nngeo_api_version = 2\n@hookimpl\ndef nngeo_kernels(): return []",
    "twin-one": STRIPED,
    "twin-two": STRIPED,
    "rule-one": RULE.format(type="Bilinear", overrides=()),
    "rule-two": RULE.format(type="Bilinear", overrides=()),
    "overriding": LINEAR,
}

FAILURES = {
    "broken-import": "failed with ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
    "wrong-signature": "failed with PluginValidationError: Plugin",
    "misspelt-hook": "failed with PluginError: 'nngeo_generater' is not a hook; did you mean 'nngeo_generators'",
    "raising-hook": "failed with OSError: no disk",
    "other-version": "failed with PluginError: it was written for version 2 of nngeo's hooks",
}
"""Those that fail when they are loaded, and how."""

CODE = """
import warnings
import torch
from torch import nn
from nngeo import FIM, PluginError
from nngeo_core.plugins import registry
from nngeo_core.testing import fisher, relative_error

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
x = torch.randn(5, 3)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

def message(call):
    try:
        call()
    except PluginError as error:
        return str(error)
    raise AssertionError("nothing was raised")
"""


def write_wheel(folder: Path, name: str, code: str, entry: str) -> None:
    """Write the wheel of a distribution with one module, of the same name, that is a plugin."""
    module, information = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
    files = {
        f"{module}.py": f"from nngeo_core.plugins import hookimpl\n{code}\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nngeo-core\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: nngeo\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/entry_points.txt": f"[nngeo]\n{entry} = {module}\n",
    }
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in files.items()
    }
    record = [f"{path},sha256={digest},{len(files[path].encode())}" for path, digest in digests.items()]
    files[f"{information}/RECORD"] = "\n".join([*record, f"{information}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for name, code in PLUGINS.items():
        write_wheel(folder, name, code, entry="twin" if name.startswith("twin") else name)
    return folder


@pytest.fixture(scope="module")
def broken(make_environment: Callable[[], Environment], wheels: Path) -> Environment:
    """Everything of ours, and all those plugins."""
    environment = make_environment()
    environment.install("nngeo")
    environment.install(*PLUGINS, wheels=wheels)
    return environment


def lines(environment: Environment, code: str, **variables: str) -> list[str]:
    printed: str = environment.run("-W", "ignore:nngeo's plugin", "-c", CODE + code, **variables)
    return printed.splitlines()


def test_a_computation_that_needs_none_of_them_goes_on_and_each_failure_is_warned_about_once(
    broken: Environment,
) -> None:
    code = """
warnings.resetwarnings()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    F = FIM(model, x, "dense")
    FIM(model, x, "diag")
names = [name for name, _ in model.named_parameters()]
print(relative_error(F.get_dense_tensor(), fisher(model, x, names, "classif_logits")) < 1e-10)
for warning in caught:
    print(warning.category.__name__, *str(warning.message).split(chr(10)))
"""
    first, *warned = lines(broken, code)
    assert first == "True"
    for name, state in {**FAILURES, "raising-late": "failed with OSError: no memory"}.items():
        (line,) = [line for line in warned if f"plugin '{name}'" in line]
        assert line.startswith(f"PluginWarning nngeo's plugin '{name}' of distribution {name} 1.0 {state}")
    assert len(warned) == len(FAILURES) + 1


def test_an_unknown_name_names_all_that_failed(broken: Environment) -> None:
    (found,) = lines(broken, "print(*message(lambda: FIM(model, x, 'raising-hook')).split(chr(10)))")
    for name, state in FAILURES.items():
        assert f"plugin '{name}' of distribution {name} 1.0 ({state}" in found


def test_a_layer_whose_rule_may_have_failed_to_load_is_refused_with_the_failures(broken: Environment) -> None:
    code = """
from nngeo import UnsupportedOperationError
class Cubes(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
    def forward(self, x):
        return x ** 3 * self.weight
try:
    FIM(Cubes(), x, "kfac")
except UnsupportedOperationError as error:
    print(*str(error).split(chr(10)))
"""
    (found,) = lines(broken, code)
    assert found.startswith("layer ''")
    assert (
        "One of these may be at fault: plugin 'broken-import' of distribution broken-import 1.0 (failed with" in found
    )


def test_one_name_of_two_distributions_stands_for_neither_until_one_is_blocked(broken: Environment) -> None:
    (found,) = lines(broken, "print(message(lambda: FIM(model, x, 'striped')))")
    assert "provided by plugin 'twin' of distribution twin-one 1.0 and plugin 'twin' of distribution twin-two" in found
    code = "print(registry.representation('striped').owner)"
    assert lines(broken, code, NNGEO_DISABLED_PLUGINS="twin-one") == ["twin_two"]


def test_conflicting_rules_refuse_their_type_and_an_override_decides(broken: Environment) -> None:
    code = """
class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.form = nn.Bilinear(3, 3, 2)
    def forward(self, x):
        return self.form(x, x)
print(message(lambda: FIM(Product(), x, "dense")))
print(registry.rule(nn.Linear).name, "theirs" in str(FIM(model, x, "dense").layer_collection))
"""
    refused, overridden = lines(broken, code)
    assert refused.startswith("layer rule torch.nn.modules.linear.Bilinear is provided by plugin 'rule-one' of")
    assert "and plugin 'rule-two' of distribution rule-two 1.0" in refused
    assert overridden == "theirs True"
    assert lines(broken, "print(registry.rule(nn.Linear).name)", NNGEO_DISABLED_PLUGINS="overriding") == ["linear"]


def test_the_table_shows_every_state(broken: Environment) -> None:
    table = broken.run("-m", "nngeo_core", "plugins", NNGEO_DISABLED_PLUGINS="raising-late")
    for name in PLUGINS:
        assert name in table
    words = " ".join(table.split())
    for state in ("failed with OSError: no disk", "blocked by NNGEO_DISABLED_PLUGINS", "in conflict: layer rule"):
        assert state in words


def test_threads_that_look_up_first_find_the_same(broken: Environment) -> None:
    code = """
import threading
barrier, found = threading.Barrier(8), []
def work():
    barrier.wait()
    found.append((registry.rule(nn.Linear), registry.representation("dense"), len(registry.status())))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), len(set(found)))
"""
    assert lines(broken, code) == ["8 1"]


def test_the_order_of_installation_does_not_matter(
    make_environment: Callable[[], Environment], wheels: Path, broken: Environment
) -> None:
    other = make_environment()
    other.install("nngeo")
    for name in reversed([name for name in PLUGINS if name.startswith(("twin", "rule", "over", "broken"))]):
        other.install(name, wheels=wheels)
    absent = ",".join(name for name in PLUGINS if not name.startswith(("twin", "rule", "over", "broken")))
    code = """
print(registry.rule(nn.Linear).name, message(lambda: registry.representation("striped")))
print(message(lambda: registry.rule(nn.Bilinear)))
"""
    assert lines(other, code) == lines(broken, code, NNGEO_DISABLED_PLUGINS=absent)
