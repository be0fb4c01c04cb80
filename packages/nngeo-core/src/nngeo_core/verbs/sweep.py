"""One sweep over the data for the representations that a verb was asked for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
from nngeo_core.sweep.processes import agree, check_shard, share, together

__all__ = ["START", "shared_generator", "swept"]

START = "the start"
"""The operation before the first pass, which all verbs have in common: processes that are in different ones meet here."""


def shared_generator(
    chosen: Callable[[], Any],
    arguments: Sequence[Any],
    loaders: Sequence[Any],
    group: Group | None,
) -> tuple[Any, Generator]:
    """A kernel's or a map's class, and the generator it is made by, about which all processes of a group agree.

    Args:
        chosen: Finds the class.
        arguments: The generator's.
        loaders: Whose examples it is about.
        group: The processes, to whom the caller tells errors; None for this one alone.
    """
    kind, generator = chosen(), registry.generator("hooks")(*arguments)
    if group is not None:
        for loader in loaders:
            check_shard(loader, group)
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
        group: The processes whose examples are summed, to whom the caller tells errors; None for this one alone.

    Returns:
        The matrix, or a list of matrices in the order of `representation`.
    """
    several = isinstance(representation, Sequence) and not isinstance(representation, str)
    wanted: Any = representation if several else [representation]
    choices = [chosen_representation(choice) for choice in wanted]
    if not choices:
        raise ValueError("representation is an empty list; give at least one name or class")
    generator = made()
    if group is not None:
        share(generator, group, START)
        agree(group, START, {"the representations": [f"{kind.__name__}" for kind, _ in choices]})
    prepared = [kind.prepare(generator, by_layer) for kind, by_layer in choices]
    _check(loader, prepared, checkpoint, group)
    lazy = [kind(generator, examples=loader) for (kind, _), sums in zip(choices, prepared, strict=True) if sums is None]
    with together(group, START):
        pass  # from here on, what goes wrong is about the examples
    matrices = _in_order(lazy, _summed(generator, loader, choices, prepared, progress, checkpoint), prepared)
    return matrices if several else matrices[0]


def _check(
    loader: Any, prepared: Sequence[Accumulator | None], checkpoint: Checkpoint | None, group: Group | None
) -> None:
    """See that a loader can be read as often as the matrices need, and that a checkpoint has sums to keep."""
    if group is not None:
        check_shard(loader, group)
    if None in prepared and isinstance(loader, Iterator):
        raise ValueError(
            f"a matrix without sums goes over the examples at each product, and {type(loader).__name__} can be read only "
            "once; give a loader that can be iterated again"
        )
    if checkpoint is not None and not any(sums is not None for sums in prepared):
        raise UnsupportedOperationError(
            "nothing is summed over the examples that a checkpoint could keep; leave it out"
        )


def _summed(
    generator: Generator,
    loader: Any,
    choices: Sequence[tuple[type[PMat], Any]],
    prepared: Sequence[Accumulator | None],
    progress: bool,
    checkpoint: Checkpoint | None,
) -> list[PMat]:
    """The matrices that store sums over the examples."""
    stored = [(kind, sums) for (kind, _), sums in zip(choices, prepared, strict=True) if sums is not None]
    if not stored:
        return []
    label = ", ".join(kind.__name__ for kind, _ in stored) if progress else False
    found = collect(generator, loader, [sums for _, sums in stored], label, checkpoint)
    return [
        kind(generator, data=data, n_examples=sums.n_examples) for (kind, sums), data in zip(stored, found, strict=True)
    ]


def _in_order(lazy: Sequence[PMat], stored: Sequence[PMat], prepared: Sequence[Accumulator | None]) -> list[PMat]:
    """The matrices in the order in which they were asked for."""
    without, with_sums = iter(lazy), iter(stored)
    return [next(without if sums is None else with_sums) for sums in prepared]
