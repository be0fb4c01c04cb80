"""Peak memory of one operation of one library, as a new process finds it. Reads Linux's process files."""

import ctypes
import subprocess
import sys

from benchmarks.bench_memory import forget_high_water, high_water, resident
from benchmarks.peers import timing


def peak(library: str, workload: str, operation: str) -> int:
    """Bytes that a run of an operation adds at its peak to what the process held before.

    It is the second run: the first one loads code, and finds out what is known about the model in all later ones.
    """
    from benchmarks.peers.libraries import LIBRARIES
    from benchmarks.peers.workloads import WORKLOADS

    problem = next(one for one in WORKLOADS if one.title == workload).build()
    chosen = LIBRARIES[library]()(problem).operation(operation)
    timing.seconds(chosen)
    ctypes.CDLL(None).malloc_trim(0)  # what the first run freed would hide what the next one takes
    forget_high_water()
    before = resident()
    timing.seconds(chosen)
    return high_water() - before


def peak_alone(library: str, workload: str, operation: str) -> int | None:
    """`peak` in a new process; None if it fails or takes over two minutes."""
    command = [sys.executable, "-m", "benchmarks.peers.memory", library, workload, operation]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return int(found.split()[-1])


if __name__ == "__main__":
    print(peak(*sys.argv[1:]))
