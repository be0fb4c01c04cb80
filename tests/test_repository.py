"""What keeps the five packages one project: versions, public names, sizes, licences, and what the files may mention."""

import ast
import importlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = ["nngeo", "nngeo-core", "nngeo-generators", "nngeo-ntk", "nngeo-reprs"]
PARTS = ["nngeo_core", "nngeo_generators", "nngeo_ntk", "nngeo_reprs"]
FILES = sorted((ROOT / "packages").glob("*/src/**/*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def project_text(distribution: str) -> str:
    return (ROOT / "packages" / distribution / "pyproject.toml").read_text(encoding="utf-8")


def version(distribution: str) -> str:
    match = re.search(r'^version = "(.+)"$', project_text(distribution), re.MULTILINE)
    assert match is not None
    return match[1]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function from its `def` to its end, its docstring apart."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def public_names(tree: ast.Module) -> list[str] | None:
    """Return a module's `__all__` where it is written out."""
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, (ast.List, ast.Tuple)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "__all__":
                return list(ast.literal_eval(node.value))
    return None


def test_the_packages_are_those_listed() -> None:
    assert sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")) == DISTRIBUTIONS


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_versions_are_in_step(distribution: str) -> None:
    module = importlib.import_module(distribution.replace("-", "_"))
    assert version(distribution) == module.__version__ == version("nngeo")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_sibling_pins_are_exact(distribution: str) -> None:
    siblings = {"nngeo": DISTRIBUTIONS[1:], "nngeo-core": []}.get(distribution, ["nngeo-core"])
    required = re.findall(r'^ +"(nngeo.*)",$', project_text(distribution), re.MULTILINE)
    assert required == [f"{sibling}=={version('nngeo')}" for sibling in siblings]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_each_package_carries_the_licence_and_its_types(distribution: str) -> None:
    package = ROOT / "packages" / distribution
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (package / "src" / distribution.replace("-", "_") / "py.typed").exists()


def test_the_facade_exports_exactly_the_names_of_the_four() -> None:
    parts = [importlib.import_module(name) for name in PARTS]
    facade = importlib.import_module("nngeo")
    expected = [(name, getattr(part, name)) for part in parts for name in part.__all__]
    assert facade.__all__ == sorted(name for name, _ in expected)
    assert [name for name, value in expected if getattr(facade, name) is not value] == []


def test_public_names_are_sorted() -> None:
    listed = {relative(path): public_names(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES}
    assert [path for path, names in listed.items() if names != (names and sorted(set(names)))] == []


def test_no_source_file_is_over_400_lines() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_no_function_is_over_50_lines() -> None:
    lengths = {
        f"{relative(path)}:{node.lineno} {node.name}": body_lines(node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: length for name, length in lengths.items() if length > 50} == {}


def test_no_file_refers_to_what_lies_outside_the_repository() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    outside = re.compile(r"\.\./[s]hared\b|/work/[s]hared|\.[l]ibrary\b|\b\d{3}_[0-9a-f]{16}\b")
    paths = [path for name in names if (path := ROOT / name).is_file()]
    hits = [relative(path) for path in paths if outside.search(path.read_bytes().decode(errors="replace"))]
    assert "LICENSE" in names
    assert hits == []


def test_no_generated_file_is_kept() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode() == ""
