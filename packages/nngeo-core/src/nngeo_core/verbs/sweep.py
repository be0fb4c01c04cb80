"""One sweep over the data for the representations that a verb was asked for."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.matrices.choice import chosen_representation
from nngeo_core.matrices.pmat import PMat
from nngeo_core.parallel.group import Group
from nngeo_core.plugins import registry
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.checkpoint import Checkpoint
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.identity import computation
from nngeo_core.sweep.populate import collect
from nngeo_core.sweep.processes import agree, check_shard, chosen_group, share, together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["START", "shared_generator", "swept"]

START = "the start"
"""The operation before the first pass, which all verbs have in common: processes that are in different ones meet here."""


def shared_generator(
    chosen: Callable[[], Any],
    arguments: Sequence[Any],
    loaders: Sequence[Any],
    distributed: bool,
    process_group: "ProcessGroup | None",
) -> tuple[Any, Generator]:
    """A kernel's or a map's class, and the generator it is made by, about which all processes of a group agree.

    Args:
        chosen: Finds the class.
        arguments: The generator's.
        loaders: Whose examples it is about.
        distributed: As for `FIM`.
        process_group: As for `FIM`.
    """
    group = chosen_group(distributed, process_group)
    with together(group, START):
        kind, generator = chosen(), registry.generator("hooks")(*arguments)
        if group is not None:
            for loader in loaders:
                check_shard(loader, group)
    if group is not None:
        share(generator, group, START)
        agree(group, START, {"the representations": [kind.__name__], "the number of loaders": len(loaders)})
        agree(group, START, computation(generator, ()))
    return kind, generator


def swept(
    made: Callable[[], Generator],
    loader: Any,
    representation: Any,
    progress: bool,
    checkpoint: Checkpoint | None,
    group: Group | None = None,
) -> PMat | list[PMat]:
    """The matrices that a generator's Jacobians sum up to, with as many passes as the neediest asks.

    Args:
        made: Makes the generator, once the representations are known to exist.
        loader: One batch or a loader.
        representation: A registered name, a class, `"auto"`, a mapping from layers to those, or a list of any of them.
        progress: Whether to show a progress bar for each pass.
        checkpoint: Where the sums are written on the way.
        group: The processes whose examples are summed; None for this one alone.

    Returns:
        The matrix, or a list of matrices in the order of `representation`.
    """
    several = isinstance(representation, Sequence) and not isinstance(representation, str)
    wanted: Any = representation if several else [representation]
    with together(group, START):
        choices = [chosen_representation(choice) for choice in wanted]
        if not choices:
            raise ValueError("representation is an empty list; give at least one name or class")
        generator = made()
    if group is not None:
        share(generator, group, START)
        agree(group, START, {"the representations": [f"{kind.__name__}" for kind, _ in choices]})
    with together(group, START):
        prepared = [kind.prepare(generator, by_layer) for kind, by_layer in choices]
        if group is not None:
            check_shard(loader, group)
    found = iter(_collected(generator, loader, choices, prepared, progress, checkpoint))
    matrices = [
        kind(generator, examples=loader)
        if sums is None
        else kind(generator, data=next(found), n_examples=sums.n_examples)
        for (kind, _), sums in zip(choices, prepared, strict=True)
    ]
    return matrices if several else matrices[0]


def _collected(
    generator: Generator,
    loader: Any,
    choices: Sequence[tuple[type[PMat], Any]],
    prepared: Sequence[Accumulator | None],
    progress: bool,
    checkpoint: Checkpoint | None,
) -> list[Any]:
    """The data of those that store sums over the examples."""
    accumulators = [sums for sums in prepared if sums is not None]
    label = ", ".join(kind.__name__ for (kind, _), sums in zip(choices, prepared, strict=True) if sums is not None)
    if len(accumulators) < len(prepared) and isinstance(loader, Iterator):
        raise ValueError(
            f"a matrix without sums goes over the examples at each product, and {type(loader).__name__} can be read only "
            "once; give a loader that can be iterated again"
        )
    if accumulators:
        return collect(generator, loader, accumulators, label if progress else False, checkpoint)
    if checkpoint is not None:
        raise UnsupportedOperationError(
            "nothing is summed over the examples that a checkpoint could keep; leave it out"
        )
    return []
