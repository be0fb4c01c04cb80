"""What is in the wheels and sdists of the five packages, and of the example plugins. `nox -s wheels` builds them first."""

import re
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "wheels"
PROJECTS = {
    path.parent.name: path.parent
    for pattern in ("packages/*/pyproject.toml", "examples/plugins/*/pyproject.toml")
    for path in sorted(ROOT.glob(pattern))
}
OURS = [name for name, path in PROJECTS.items() if path.parent.name == "packages"]
VERSION = "0.1.0"
ENTRY_POINTS = {
    "nngeo": "[console_scripts]\nnngeo = nngeo.__main__:main\n",
    "nngeo-core": "[nngeo]\nnngeo-core = nngeo_core.likelihoods.plugin\n",
    "nngeo-generators": "[nngeo]\nnngeo-generators = nngeo_generators.plugin\n",
    "nngeo-ntk": "[nngeo]\nnngeo-ntk = nngeo_ntk.plugin\n",
    "nngeo-reprs": "[nngeo]\nnngeo-reprs = nngeo_reprs.plugin\n",
}

every_project = pytest.mark.parametrize("name", PROJECTS)
every_package = pytest.mark.parametrize("name", OURS)


def module(name: str) -> str:
    return name.replace("-", "_")


def information(name: str) -> str:
    return f"{module(name)}-{VERSION}.dist-info"


def wheel(name: str) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(WHEELS / f"{module(name)}-{VERSION}-py3-none-any.whl") as archive:
        return {path: archive.read(path) for path in archive.namelist()}


def sdist(name: str) -> dict[str, bytes]:
    """The files of an sdist, without the name of the folder that holds them all."""
    with tarfile.open(WHEELS / f"{module(name)}-{VERSION}.tar.gz") as archive:
        files = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive.getmembers()}
        return {path: file.read() for path, file in files.items() if file is not None}


def metadata(name: str) -> Message:
    return Parser().parsestr(wheel(name)[f"{information(name)}/METADATA"].decode())


def quoted(name: str, pattern: str) -> list[str]:
    """The strings in the first match of a pattern in the project's own file."""
    match = re.search(
        pattern, (PROJECTS[name] / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return re.findall(r'"([^"]+)"', match[1]) if match else []


def parts(requirement: str) -> list[str]:
    """Name and version bounds, in a fixed order."""
    return sorted(re.findall(r"[<>=!~]+[\w.]+|^[\w-]+", requirement))


def source_files(name: str) -> dict[str, bytes]:
    """The files of the import package, or the one module, by their place in a wheel."""
    project = PROJECTS[name]
    root = project / "src" if (project / "src").is_dir() else project
    found = [*(root / module(name)).rglob("*"), root / f"{module(name)}.py"]
    kept = [path for path in found if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in kept}


def test_there_is_one_wheel_and_one_sdist_of_each() -> None:
    expected = [f"{module(name)}-{VERSION}{end}" for name in PROJECTS for end in (".tar.gz", "-py3-none-any.whl")]
    assert sorted(path.name for path in WHEELS.iterdir()) == sorted(expected)


@every_project
def test_a_wheel_holds_the_sources_and_nothing_else(name: str) -> None:
    files = wheel(name)
    sources = {path: content for path, content in files.items() if not path.startswith(f"{information(name)}/")}
    assert sources == source_files(name)
    assert [path for path in sources if re.search(r"(^|/)(tests/|test_|conftest)", path)] == []


@every_package
def test_a_wheel_carries_its_types(name: str) -> None:
    assert wheel(name)[f"{module(name)}/py.typed"] == b""


@every_project
def test_a_wheel_carries_its_licence_and_says_so(name: str) -> None:
    assert wheel(name)[f"{information(name)}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert (metadata(name)["License-Expression"], metadata(name).get_all("License-File")) == ("MIT", ["LICENSE"])


@every_project
def test_metadata_says_what_the_project_file_says(name: str) -> None:
    found = metadata(name)
    assert (found["Name"], found["Version"], found["Requires-Python"]) == (name, VERSION, ">=3.10")
    required = [line for line in found.get_all("Requires-Dist") if "extra ==" not in line]
    stated = quoted(name, r"^dependencies = \[(.*?)^\]")
    assert sorted(map(parts, required)) == sorted(map(parts, stated))
    assert [found["Summary"]] == quoted(name, r"^description = (.*?)$")
    assert found.get_all("Classifier") == quoted(name, r"^classifiers = \[(.*?)^\]")
    readme = (PROJECTS[name] / "README.md").read_text(encoding="utf-8")
    assert (found["Description-Content-Type"], str(found.get_payload()).strip()) == ("text/markdown", readme.strip())


@every_package
def test_entry_points(name: str) -> None:
    files = wheel(name)
    text = files[f"{information(name)}/entry_points.txt"].decode()
    assert text == ENTRY_POINTS[name]
    target = re.findall(r" = ([\w.]+)", text)[0]
    assert f"{target.replace('.', '/')}.py" in files


@every_project
def test_an_sdist_is_all_that_its_wheel_needs(name: str) -> None:
    files = sdist(name)
    assert {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"} <= files.keys()
    prefix = "src/" if (PROJECTS[name] / "src").is_dir() else ""
    assert {path: files.get(prefix + path) for path in source_files(name)} == source_files(name)
