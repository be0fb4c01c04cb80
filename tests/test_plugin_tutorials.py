"""The pages for authors of plugins: the test classes that they show pass, and the hook reference is up to date."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nngeo_core.plugins import API_VERSION, hookspecs

PAGES = Path(__file__).parents[1] / "docs" / "plugins"
TUTORIALS = ["generator", "layer-rule", "likelihood", "representation"]


def load(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_the_suite_that_a_tutorial_shows_passes(tutorial: str, tmp_path: Path) -> None:
    code = re.findall(
        r"^```python\n(.*?)^```$", (PAGES / f"{tutorial}.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    file = tmp_path / "test_tutorial.py"
    file.write_text("\n\n".join(code), encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", f"--rootdir={tmp_path}", "--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed in", done.stdout.splitlines()[-1])
    assert "class Test" in file.read_text(encoding="utf-8")


def test_every_tutorial_is_tested() -> None:
    assert sorted(path.stem for path in PAGES.glob("*.md")) == sorted([*TUTORIALS, "hooks", "index"])


def test_the_hook_reference_is_what_the_specifications_say() -> None:
    assert (PAGES / "hooks.md").read_text("utf-8") == load(PAGES / "make_hooks.py").render(), "run make_hooks.py"


def test_the_hook_reference_is_complete() -> None:
    page = (PAGES / "hooks.md").read_text("utf-8")
    hooks = [name for name in hookspecs.__all__ if name.startswith("nngeo_")]
    assert re.findall(r"^## `(\w+)`$", page, re.MULTILINE) == hooks
    assert page.count("```pycon\n>>> ") == len(hooks)
    assert page.count("Returns: ") == len(hooks)
    assert f"version {API_VERSION} of the hooks" in page
    assert not re.search(r"(?<!`)``(?!`)|Args:|Example:", page)
