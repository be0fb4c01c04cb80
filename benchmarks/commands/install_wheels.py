"""asv's install command: all wheels of a commit, after those of another one are gone. Argument: the cache folder."""

import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path


def main(cache: Path) -> None:
    """Install what `build_wheels.py` left there; siblings come together, so pip looks for none of them elsewhere."""
    pip = [sys.executable, "-m", "pip"]
    here = {d.metadata["Name"] for d in distributions(path=[path for path in sys.path if path.startswith(sys.prefix)])}
    ours = sorted(name for name in here if name == "nngeo" or name.startswith("nngeo-"))
    if ours:
        subprocess.run([*pip, "uninstall", "--yes", *ours], check=True)
    wheels = [str(path) for path in sorted((cache / "wheels").glob("*.whl"))]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", *wheels], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
