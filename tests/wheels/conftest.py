"""Environments that hold nothing but what pip installs into them: all else comes from the environment of these tests."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

WHEELS = Path(__file__).parents[2] / "build" / "wheels"


class Environment:
    """A virtual environment over a library of third-party distributions, with wheels of ours.

    Args:
        folder: Where it is made.
        library: A folder with all that is installed beside the wheels.
    """

    def __init__(self, folder: Path, library: Path) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        self.commands = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.commands / "python"
        purelib = self.run("-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
        Path(purelib, "library.pth").write_text(f"{library}\n", encoding="utf-8")

    def install(self, *distributions: str, wheels: Path = WHEELS) -> None:
        """Install distributions from their wheels in one call of pip, which may look nowhere else."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", "--no-index"]
        self._run([*pip, "--find-links", str(wheels), *distributions], {})

    def run(self, *arguments: str, **variables: str) -> str:
        """What Python prints when it is started with these arguments, warnings being errors."""
        return self._run([str(self.python), "-I", "-W", "error", *arguments], variables)

    def command(self, name: str, *arguments: str) -> str:
        """What a command prints that was installed here."""
        return self._run([str(self.commands / name), *arguments], {})

    def _run(self, command: list[str], variables: dict[str, str]) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        environment = {**kept, "OMP_NUM_THREADS": "1", **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to everything that is installed here but nngeo's own distributions and their import hooks."""
    folder = tmp_path_factory.mktemp("library")
    for site in map(Path, sys.path):
        if site.name in ("site-packages", "dist-packages"):
            for entry in site.iterdir():
                link = folder / entry.name
                if "nngeo" not in entry.name and entry.suffix != ".pth" and not link.exists():
                    link.symlink_to(entry)
    return folder


@pytest.fixture
def environment(tmp_path: Path, library: Path) -> Environment:
    """An environment with none of our wheels yet."""
    return Environment(tmp_path / "environment", library)


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Callable[[], Environment]:
    """Makes environments that outlive a test."""
    return lambda: Environment(tmp_path_factory.mktemp("environment"), library)
