"""How far the library is from its floor: the matrix products and convolutions that an operation must do, called bare.

Run `python -m benchmarks.floor`. Every figure is a ratio of two times measured in turn in one process, the median of
several repetitions, so that it does not depend on how fast or how busy the machine is.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.floors import floor
from benchmarks.networks import convnet, mlp, random_inputs
from benchmarks.peers import timing
from benchmarks.peers.ours import Ours
from benchmarks.peers.problem import Problem
from benchmarks.peers.timing import interleaved, ratio, warmed


@dataclass(frozen=True)
class Workload:
    """Operations on a model.

    Attributes:
        title: Names the model.
        build: Makes it.
        shape: That of an example.
        operations: Their names.
        examples: How many there are.
        batch: How many of them a batch has.
    """

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    operations: tuple[str, ...]
    examples: int = 256
    batch: int = 64

    def problem(self) -> Problem:
        """The model and its data, always the same."""
        torch.manual_seed(0)
        return Problem(self.build(), random_inputs(self.examples, *self.shape), batch=self.batch)


MLP = ("MLP 784-512-512-10", partial(mlp, 784, 512, 512, 10), (784,))
CONVNET = ("convnet 32-32-64-64, 3 x 32 x 32", partial(convnet, 32, 32, 64, 64), (3, 32, 32))
WORKLOADS = [
    Workload(*MLP, ("product", "diag", "kfac")),
    Workload(*CONVNET, ("product", "diag", "kfac")),
    Workload("MLP 64-48-48-10", partial(mlp, 64, 48, 48, 10), (64,), ("dense",)),
    Workload("convnet 8-8-16-16, 3 x 16 x 16", partial(convnet, 8, 8, 16, 16), (3, 16, 16), ("dense",)),
    Workload(*MLP, ("gram",), examples=128, batch=16),
    Workload(*CONVNET, ("gram",), examples=64, batch=16),
]


def row(title: str, problem: Problem, name: str, repetitions: int) -> str:
    """One line of the table."""
    bare = floor(problem, name)
    assert bare is not None, name
    operations = {"ours": Ours(problem).operation(name), "floor": bare, "gradient": warmed(problem.gradient_pass)}
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
    for workload in WORKLOADS:
        for name in workload.operations:
            if options.only in f"{workload.title} {name}":
                print(row(workload.title, workload.problem(), name, options.repetitions), flush=True)


if __name__ == "__main__":
    main()
