"""Peak memory of one operation of one library, as a new process finds it. Reads Linux's process files."""

import resource
import subprocess
import sys

from benchmarks.bench_memory import resident


def peak(library: str, workload: str, operation: str) -> int:
    """Bytes that a first run of an operation adds at its peak to what the process held before; the set-up is not counted."""
    from benchmarks.peers.libraries import LIBRARIES
    from benchmarks.peers.workloads import WORKLOADS

    problem = next(one for one in WORKLOADS if one.title == workload).build()
    problem.gradient_pass()
    before, high = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    chosen = LIBRARIES[library]()(problem).operation(operation)
    if chosen.prepare is not None:
        chosen.prepare()
    chosen.run()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return after - min(before, high)


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
