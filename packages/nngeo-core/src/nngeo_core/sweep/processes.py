"""Before several processes share a computation: which ones do, that all of them mean the same, and what each may read."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from json import dumps
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.utils.data.distributed import DistributedSampler

from nngeo_core.errors import DistributedError
from nngeo_core.parallel.group import Group
from nngeo_core.parallel.packing import number_of
from nngeo_core.sweep.examples import is_one_batch
from nngeo_core.sweep.identity import first_difference
from nngeo_core.sweep.operator import OperatorGenerator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["agree", "check_shard", "chosen_group", "regroup", "share", "telling", "together"]


def chosen_group(distributed: bool, process_group: "ProcessGroup | None") -> Group | None:
    """The group that arguments `distributed=` and `process_group=` mean; None for this process alone.

    Raises:
        DistributedError: torch.distributed is not there, or was not initialized.
        ValueError: This process is none of the group.
    """
    if not distributed and process_group is None:
        return None
    if not dist.is_available():
        raise DistributedError(
            "this build of torch has no torch.distributed; leave out distributed= and process_group="
        )
    if not dist.is_initialized():
        raise DistributedError(
            "distributed=True needs a process group: start the processes with torchrun, and call "
            "torch.distributed.init_process_group() before this"
        )
    return Group(process_group)


def share(generator: OperatorGenerator, group: Group, what: str) -> None:
    """Have a generator's products, and the sums of its Jacobians, go over the examples of all processes from now on.

    Draws become those of this process's stream, from the seed of the first process.

    Args:
        generator: Differentiates the model.
        group: The processes.
        what: The operation, for errors.
    """
    likelihood = generator.likelihood
    with group.together(what, 0 if likelihood.seed is None else likelihood.seed) as seeds:
        pass
    group.device = generator.device
    generator.group = group
    if likelihood.seed is not None:
        generator.likelihood = copy(likelihood)
        generator.likelihood.seed, generator.likelihood.stream = seeds[0], group.rank


def regroup(generators: Sequence[OperatorGenerator], group: Group | None, what: str) -> None:
    """Have generators go over the examples of other processes than before, from now on."""
    for generator in generators:
        if group is not None:
            share(generator, group, what)
        else:
            generator.group, generator.likelihood = None, copy(generator.likelihood)
            generator.likelihood.stream = 0


def together(group: Group | None, what: str, number: int = 0) -> AbstractContextManager[list[int]]:
    """`group.together`, or nothing if there is no group."""
    return nullcontext([number]) if group is None else group.together(what, number)


def telling(group: Group | None, what: str) -> AbstractContextManager[None]:
    """`group.telling`, or nothing if there is no group."""
    return nullcontext() if group is None else group.telling(what)


def agree(group: Group, what: str, description: Mapping[str, Any]) -> None:
    """See that all processes are about the same computation.

    Args:
        group: The processes.
        what: The operation, for errors.
        description: What they must have in common, in a form that JSON keeps; digests of the parts are exchanged, and the
            parts themselves only where these differ.

    Raises:
        DistributedError: They are not; says in what two processes differ.
    """
    text = dumps(description, sort_keys=True).encode()
    with group.together(what, number_of(text)) as digests:
        pass
    if len(set(digests)) == 1:
        return
    described = group.gather_values(description, what)
    for rank, theirs in enumerate(described):
        difference = first_difference(theirs, described[0])
        if difference:
            raise DistributedError(
                f"{what}: processes 0 and {rank} are not about the same computation; it differs in {difference} ('here' is "
                f"process 0, 'there' process {rank}). Give all processes the same model, parameters and arguments"
            )


def check_shard(examples: Any, group: Group) -> None:
    """Refuse a loader that would have examples counted twice.

    Raises:
        ValueError: A `DistributedSampler` pads the shards to one length by repeating examples, or is of other processes.
    """
    sampler = None if is_one_batch(examples) else _distributed_sampler(examples)
    if sampler is None:
        return
    n, size = len(sampler.dataset), group.size
    if sampler.num_replicas != size or sampler.rank != group.rank:
        raise ValueError(
            f"the loader has the shard {sampler.rank} of {sampler.num_replicas} of the examples, and this is process "
            f"{group.rank} of {size}; give DistributedSampler the rank and number of processes of the group"
        )
    if sampler.total_size > n:
        raise ValueError(
            f"DistributedSampler repeats {sampler.total_size - n} of {n} examples to make {size} shards of one length, and "
            "they would count twice; shards may be uneven here: DataLoader(Subset(dataset, range(rank, len(dataset), "
            "processes)), batch_size=...), without a sampler, has each example once"
        )


def _distributed_sampler(examples: Any) -> Any:
    """The `DistributedSampler` of a DataLoader, if it has one."""
    candidates = [
        getattr(examples, "sampler", None),
        getattr(getattr(examples, "batch_sampler", None), "sampler", None),
    ]
    return next((one for one in candidates if isinstance(one, DistributedSampler)), None)
