"""``nngeo compute``: a matrix of what a function of the user's returns, in one process or in many, into a file."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from nngeo_core.commands.target import called, options_of
from nngeo_core.commands.words import failed, in_a_folder
from nngeo_core.errors import DistributedError, NNGeoError
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.examples import iterate_batches
from nngeo_core.sweep.identity import batch_digest
from nngeo_core.sweep.processes import together
from nngeo_core.verbs.empirical import EmpiricalFIM
from nngeo_core.verbs.fim import FIM
from nngeo_core.verbs.ggn import GGN
from nngeo_core.verbs.monte_carlo import FIM_MonteCarlo

__all__ = ["add_compute"]

VERBS: dict[str, Callable[..., Any]] = {
    "FIM": FIM,
    "FIM_MonteCarlo": FIM_MonteCarlo,
    "EmpiricalFIM": EmpiricalFIM,
    "GGN": GGN,
}
_DESCRIPTION = """\
Compute a matrix and write it to a file, which nngeo.PMat.load reads.

The target is a function of yours that takes no arguments and returns (model, loader), (model, loader, options) or a mapping
of options with the keys model and loader among them; options are those of nngeo.FIM (or of the verb asked for). What is given
on the command line comes before them.

Started by torchrun, on one or on many machines, all processes compute one matrix together: the target is called in each, the
process group is there before, and the loader it returns has the examples of that process alone, such as
Subset(dataset, range(rank, len(dataset), processes)) with the RANK and WORLD_SIZE of the environment. Killed and started
again with the same words, a computation with --checkpoint goes on where it was."""


def add_compute(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser(
        "compute",
        help="compute a matrix of a model of yours into a file, also under torchrun",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--target", required=True, metavar="MODULE:FUNCTION", help="what returns the model and the data")
    add("--representation", required=True, metavar="NAME", help="such as kfac, ekfac, diag or auto")
    add("--output", required=True, type=in_a_folder, metavar="FILE", help="the file to write, by process 0")
    add("--verb", choices=VERBS, help="default: FIM, or FIM_MonteCarlo with --trials")
    add("--variant", metavar="NAME", help="the likelihood (default: classif_logits)")
    add("--trials", type=int, metavar="T", help="draw T targets for each example")
    add("--seed", type=int, metavar="N", help="of the draws (default: 0, so that a checkpoint can be gone on with)")
    add("--memory-budget", type=int, metavar="BYTES", help="what captured tensors may take together")
    add("--checkpoint", metavar="FOLDER", help="where sums are written on the way, one file for each process")
    add("--checkpoint-every", type=int, metavar="N", help="how many batches lie between two writings (default: 100)")
    add("--timeout", type=float, default=1800.0, metavar="SECONDS", help="how long processes wait for one another")
    add("--no-progress", action="store_const", const=False, dest="progress", help="show no bars")
    parser.set_defaults(run=_compute)


def _compute(arguments: argparse.Namespace) -> int:
    with _joined(arguments.timeout) as group:
        try:
            with together(group, "calling the target"):
                options = options_of(called(arguments.target))
        except (ImportError, ValueError) as error:
            return failed("compute", error, 2)
        except DistributedError as error:
            return failed("compute", error, 1)
        try:
            with together(group, "nngeo compute"):
                matrix = _matrix(arguments, options, group)
                if group is None or group.rank == 0:
                    matrix.save(arguments.output)
                    print(matrix)
        except NNGeoError as error:
            return failed("compute", error, 1)
    return 0


def _matrix(arguments: argparse.Namespace, options: dict[str, Any], group: Group | None) -> Any:
    names = ("variant", "trials", "memory_budget", "checkpoint", "checkpoint_every", "progress")
    given = {name: getattr(arguments, name) for name in names}
    options = {"progress": True, **options, **{name: value for name, value in given.items() if value is not None}}
    verb = arguments.verb or ("FIM_MonteCarlo" if "trials" in options else "FIM")
    if verb == "FIM_MonteCarlo" and ("generator" not in options or arguments.seed is not None):
        options["generator"] = torch.Generator().manual_seed(arguments.seed or 0)
    if group is not None:
        _check_shards(options["loader"], group)
        options["distributed"] = True
    return VERBS[verb](representation=arguments.representation, **options)


def _check_shards(loader: Any, group: Group) -> None:
    """Refuse loaders that give the same examples on two processes, as a target that knows nothing of processes does.

    Raises:
        DistributedError: They begin with the same batch.
    """
    what = "looking at the first batches"
    with group.together(what):
        first = None if isinstance(loader, Iterator) else next(iter(iterate_batches(loader)), None)
        digest = None if first is None else batch_digest(first)
    digests = group.gather_values(digest, what)
    for rank, digest in enumerate(digests):
        if digest is not None and digest in digests[:rank]:
            raise DistributedError(
                f"processes {digests.index(digest)} and {rank} of {group.size} begin with the same batch; the target returns "
                "the examples of its process alone: Subset(dataset, range(rank, len(dataset), processes)), with the numbers "
                "int(os.environ['RANK']) and int(os.environ['WORLD_SIZE'])"
            )


@contextmanager
def _joined(timeout: float) -> Iterator[Group | None]:
    """The process group of torchrun's processes; None for a process by itself."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield None
        return
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=timedelta(seconds=timeout))
    yield Group()
    dist.destroy_process_group()
