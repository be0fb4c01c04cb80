"""Who may import whom: between the packages, between the core's folders, and no circle of files."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "packages").glob("*/src"))

ALLOWED_SIBLINGS = {
    "nngeo_core": set(),
    "nngeo_generators": {"nngeo_core"},
    "nngeo_ntk": {"nngeo_core"},
    "nngeo_reprs": {"nngeo_core"},
    "nngeo": {"nngeo_core", "nngeo_generators", "nngeo_ntk", "nngeo_reprs"},
}

# The core's folders and files from top to bottom; an entry imports itself and what is below it. "" is the `__init__`.
CORE_LEVELS = [
    {""},
    {"testing"},
    {"cli", "commands", "__main__"},
    {"aliases", "verbs"},
    {"matrices"},
    {"sweep"},
    {"vectors"},
    {"layers"},
    {"likelihoods"},
    {"jacobians"},
    {"linear_algebra"},
    {"plugins"},
    {"parallel"},
    {"storage", "conventions", "errors"},
]
CORE_RANK = {name: rank for rank, names in enumerate(CORE_LEVELS) for name in names}


def find_modules() -> dict[str, Path]:
    """Return every module of the packages by its dotted name."""
    modules = {}
    for source in SOURCES:
        for path in source.rglob("*.py"):
            parts = path.relative_to(source).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = find_modules()


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below `node`, without what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.orelse:
                yield from run_time_nodes(statement)
        else:
            yield child
            yield from run_time_nodes(child)


def imported_from(name: str, node: ast.ImportFrom) -> Iterator[str]:
    """Yield what a `from ... import ...` statement of module `name` imports: submodules by their own names."""
    base = node.module or ""
    if node.level:
        depth = node.level - (MODULES[name].name == "__init__.py")
        parents = name.split(".")[: len(name.split(".")) - depth]
        base = ".".join([*parents, base] if base else parents)
    for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield submodule if submodule in MODULES else base


def imports(name: str) -> set[str]:
    """Return the dotted names that module `name` imports at run time, at its top or inside functions."""
    found: set[str] = set()
    for node in run_time_nodes(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(imported_from(name, node))
    return found


GRAPH = {name: imports(name) for name in MODULES}


def package(name: str) -> str:
    return name.split(".")[0]


def core_entry(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_packages_import_only_those_below_them() -> None:
    assert {package(name) for name in MODULES} == set(ALLOWED_SIBLINGS)
    wrong = [
        f"{name} imports {target}"
        for name, targets in GRAPH.items()
        for target in targets
        if package(target) in ALLOWED_SIBLINGS
        and package(target) not in ALLOWED_SIBLINGS[package(name)] | {package(name)}
    ]
    assert wrong == []


def test_every_file_of_the_core_has_a_level() -> None:
    entries = {core_entry(name) for name in MODULES if package(name) == "nngeo_core"}
    assert entries - set(CORE_RANK) == set()


def test_arrows_inside_the_core_point_down() -> None:
    wrong = [
        f"{name} imports {target}, which is above it"
        for name, targets in GRAPH.items()
        for target in targets
        if package(name) == package(target) == "nngeo_core"
        and CORE_RANK[core_entry(target)] < CORE_RANK[core_entry(name)]
    ]
    assert wrong == []


def test_no_circle_of_files() -> None:
    graph = {name: {target for target in targets if target in MODULES} for name, targets in GRAPH.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("files import one another in a circle: " + " <- ".join(error.args[1]))


def test_the_core_imports_with_no_other_package_of_nngeo_on_the_path() -> None:
    core = MODULES["nngeo_core"].parents[1]
    others = sorted(set(ALLOWED_SIBLINGS) - {"nngeo_core"})
    code = (
        "import sys\n"
        "from importlib.util import find_spec\n"
        "from pathlib import Path\n"
        f"others = {others}\n"
        "kept = [path for path in sys.path if not any((Path(path) / name).exists() for name in others)]\n"
        f"sys.path[:] = [{str(core)!r}, *kept]\n"
        "assert not any(map(find_spec, others)), sys.path\n"
        "import nngeo_core\n"
        "print(sorted(name for name in sys.modules if name.startswith('nngeo') and '.' not in name))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("['nngeo_core']", 0), result.stderr
