"""Work shared out among processes: each piece is done by one of them, and all get the results."""

from collections.abc import Callable, Mapping

from torch import Tensor

from nngeo_core.parallel.group import Group
from nngeo_core.parallel.packing import in_buckets

__all__ = ["assigned", "shared_out"]


def assigned(costs: Mapping[str, float], processes: int) -> dict[str, int]:
    """Which process does each piece of work: the longest first, each to whoever has least to do (Graham 1969).

    Args:
        costs: By name.
        processes: How many there are.

    Example:
        >>> assigned({"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0}, 2)
        {'a': 0, 'b': 1, 'c': 1, 'd': 0}
    """
    loads, owners = [0.0] * processes, {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = min(range(processes), key=lambda rank: loads[rank])
        loads[owners[name]] += costs[name]
    return owners


def shared_out(
    inputs: Mapping[str, Tensor],
    costs: Mapping[str, float],
    work: Callable[[Tensor], Tensor],
    shape: Callable[[Tensor], tuple[int, ...]],
    group: Group,
    what: str,
) -> dict[str, Tensor]:
    """`work` of each tensor, computed by one process and broadcast to the others.

    Args:
        inputs: By name, the same on all processes.
        costs: How long each takes, in whatever unit.
        work: Returns a tensor of its argument's dtype.
        shape: That of what `work` returns.
        group: The processes.
        what: The operation, for errors.
    """
    owners = assigned(costs, group.size)
    with group.together(what):
        found = {
            name: work(tensor).contiguous() if owners[name] == group.rank else tensor.new_empty(shape(tensor))
            for name, tensor in inputs.items()
        }
    for rank in range(group.size):
        for bucket in in_buckets({name: tensor for name, tensor in found.items() if owners[name] == rank}):
            group.broadcast_(bucket.buffer, rank, what)
            bucket.unpack()
    return found
