"""asv's build command: wheels of every package of a commit into one folder below the cache.

asv takes the single wheel at the top of its cache folder for the project's; this repository makes several, and how many
depends on the commit. Arguments: the checkout, the cache folder. What the benchmarks need besides (torch) is that of the
environment whose site-packages `NNGEO_SITE` names, so that no commit downloads anything.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def main(checkout: Path, cache: Path) -> None:
    """Build `packages/*` of the checkout."""
    if "NNGEO_SITE" in os.environ:
        (Path(sysconfig.get_path("purelib")) / "nngeo_site.pth").write_text(os.environ["NNGEO_SITE"] + "\n")
    projects = [str(path.parent) for path in sorted(checkout.glob("packages/*/pyproject.toml"))]
    if not projects:
        raise SystemExit(f"no packages/*/pyproject.toml in {checkout}")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(cache / "wheels"), *projects], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
