"""Passes that are killed and started again give the matrix of passes that were not."""

import os
import subprocess
import sys
from pathlib import Path


def test_killed_passes_resume_to_the_same_bits(tmp_path: Path) -> None:
    script, names = Path(__file__).with_name("killed_passes.py"), ["kfac", "ekfac", "diag"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(tmp_path), "7", *names]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = [f"{name}: killed 7, resumed True, the same, 0 files left" for name in names]
    assert (found.stdout.splitlines(), found.returncode) == (expected, 0), found.stderr
