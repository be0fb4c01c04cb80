"""How far the library is from its floor: the matrix products and convolutions that an operation must do, called bare.

Run `python -m benchmarks.floor`. Every figure is a ratio of two times measured in turn in one process, the median of
several repetitions, so that it does not depend on how fast or how busy the machine is.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.floors import floor
from benchmarks.networks import convnet, mlp
from benchmarks.peers import timing
from benchmarks.peers.ours import Ours
from benchmarks.peers.problem import Problem
from benchmarks.peers.timing import interleaved, plain, ratio
from benchmarks.peers.workloads import random_inputs


def large_mlp(examples: int, batch: int) -> Problem:
    """MLP 784-512-512-10."""
    return Problem(mlp(784, 512, 512, 10), random_inputs(examples, 784), batch=batch)


def large_convnet(examples: int, batch: int) -> Problem:
    """Four layers of 32, 32, 64 and 64 channels on 3 x 32 x 32."""
    return Problem(convnet(32, 32, 64, 64), random_inputs(examples, 3, 32, 32), batch=batch)


def small_mlp(examples: int, batch: int) -> Problem:
    """MLP 64-48-48-10."""
    return Problem(mlp(64, 48, 48, 10), random_inputs(examples, 64), batch=batch)


def small_convnet(examples: int, batch: int) -> Problem:
    """Four layers of 8, 8, 16 and 16 channels on 3 x 16 x 16."""
    return Problem(convnet(8, 8, 16, 16), random_inputs(examples, 3, 16, 16), batch=batch)


WORKLOADS: list[tuple[str, Callable[[int, int], Problem], tuple[str, ...], int, int]] = [
    ("MLP 784-512-512-10", large_mlp, ("product", "diag", "kfac"), 256, 64),
    ("convnet 32-32-64-64, 3 x 32 x 32", large_convnet, ("product", "diag", "kfac"), 256, 64),
    ("MLP 64-48-48-10", small_mlp, ("dense",), 256, 64),
    ("convnet 8-8-16-16, 3 x 16 x 16", small_convnet, ("dense",), 256, 64),
    ("MLP 784-512-512-10", large_mlp, ("gram",), 128, 16),
    ("convnet 32-32-64-64, 3 x 32 x 32", large_convnet, ("gram",), 64, 16),
]
"""Title, problem, operations, examples, and how many of them a batch has."""


def row(title: str, problem: Problem, name: str, repetitions: int) -> str:
    """One line of the table."""
    bare = floor(problem, name)
    assert bare is not None, name
    operations = {"ours": Ours(problem).operation(name), "floor": bare, "gradient": plain(problem.gradient_pass)}
    for operation in operations.values():
        operation.run()
    times = interleaved(operations, repetitions, limit=float("inf"))
    ratios = [ratio(times[a], times[b]) for a, b in (("ours", "floor"), ("ours", "gradient"), ("floor", "gradient"))]
    return f"| {title} | {name} | {ratios[0]:.2f} | {ratios[1]:.1f} | {ratios[2]:.1f} |"


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", default="", help="a part of a workload's name and operation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=sorted(timing.CLOCKS), default="wall", help="cpu for a busy machine, with one thread"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    timing.clock = options.clock
    print("| workload | operation | times the floor | gradient passes | floor in gradient passes |")
    print("|---|---|---|---|---|")
    for title, build, names, examples, batch in WORKLOADS:
        for name in names:
            if options.only in f"{title} {name}":
                torch.manual_seed(0)
                print(row(title, build(examples, batch), name, options.repetitions), flush=True)


if __name__ == "__main__":
    main()
