"""Compare libraries: check that they agree, time them in turn, measure their peak memory, and write a report.

Run `python -m benchmarks.peers` in the repository's root, or `python -m nox -s peers`, which installs the peers.
"""

import argparse
import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.floors import floor
from benchmarks.peers import timing
from benchmarks.peers.agreement import TOLERANCE, Entry, compared
from benchmarks.peers.defects import measured_defects
from benchmarks.peers.libraries import LIBRARIES
from benchmarks.peers.memory import peak_alone
from benchmarks.peers.problem import Problem
from benchmarks.peers.report import Row, machine, write
from benchmarks.peers.timing import interleaved, ratio, warmed
from benchmarks.peers.workloads import WORKLOADS, Workload
from benchmarks.solve_floors import decompositions, solve_floor

NEEDED = {"NNGeometry": "nngeometry", "curvlinops": "curvlinops", "BackPACK": "backpack"}


def measured(problem: Problem, workload: Workload, name: str, libraries: dict[str, type], options: Any) -> Row:
    """One row of the comparison."""
    entries = compared(libraries, problem, name)
    timed = {title: one.operation for title, one in entries.items() if one.operation is not None}
    bare = {"floor": floor(problem, name) or solve_floor(problem, name), "eigh": decompositions(problem, name)}
    timed |= {title: operation for title, operation in bare.items() if operation is not None}
    times = interleaved({"unit": warmed(problem.gradient_pass), **timed}, options.repetitions, options.limit)
    unit = times.pop("unit")
    found = {title: _found(one, times.get(title), unit) for title, one in entries.items()}
    if options.memory:
        for title in found:
            if title in timed:
                found[title]["peak"] = peak_alone(title, workload.title, name)
    row: Row = {"workload": workload.title, "operation": name, "unit": min(unit), "libraries": found}
    return row | {title: ratio(times[title], unit) for title in bare if title in times}


def _found(entry: Entry, times: list[float] | None, unit: list[float]) -> Row:
    return {
        "ratio": ratio(times, unit) if times else None,
        "runs": len(times or []),
        "distance": entry.distance,
        "agrees": entry.distance is not None and entry.distance < TOLERANCE,
        "note": entry.note,
    }


def main() -> None:
    """Measure what the command line asks for, and write what is known after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="titles of workloads")
    parser.add_argument("--operations", nargs="*", help="names of operations")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for the runs of one operation")
    parser.add_argument("--memory", action="store_true", help="measure peaks, each in a process of its own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=sorted(timing.CLOCKS), default="wall", help="cpu for a busy machine, with one thread"
    )
    parser.add_argument("--out", type=Path, default=Path("build/peers"))
    parser.add_argument("--merge", action="store_true", help="keep rows of an earlier run that are not measured again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    timing.clock = options.clock
    absent = [title for title, module in NEEDED.items() if find_spec(module) is None]
    libraries = {title: load() for title, load in LIBRARIES.items() if title not in absent}
    print(machine(), f"; not installed: {absent}" if absent else "", flush=True)
    earlier = options.out / "peers.json"
    kept = json.loads(earlier.read_text(encoding="utf-8"))["rows"] if options.merge and earlier.exists() else []
    defects = measured_defects(absent)
    for workload in WORKLOADS:
        if options.only and workload.title not in options.only:
            continue
        problem = workload.build()
        for name in workload.operations:
            if options.operations and name not in options.operations:
                continue
            row = measured(problem, workload, name, libraries, options)
            kept = [one for one in kept if (one["workload"], one["operation"]) != (workload.title, name)] + [row]
            print(_line(row), flush=True)
            write(_ordered(kept), list(libraries), defects, options.out)


def _ordered(rows: list[Row]) -> list[Row]:
    order = [(workload.title, name) for workload in WORKLOADS for name in workload.operations]
    return sorted(rows, key=lambda row: order.index((row["workload"], row["operation"])))


def _line(row: Row) -> str:
    parts = [
        f"{title} {one['ratio']:.2f}{'' if one['agrees'] else '!'}" if one["ratio"] else f"{title} n/a ({one['note']})"
        for title, one in row["libraries"].items()
    ]
    bare = f", floor {row['floor']:.2f}" if "floor" in row else ""
    return f"{row['workload']}, {row['operation']}: {', '.join(parts)}{bare}"


if __name__ == "__main__":
    main()
