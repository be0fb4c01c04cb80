"""populate: one sweep over the data for any number of representations."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import closing
from typing import Any

import torch
from tqdm import tqdm

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.parallel.group import Group
from nngeo_core.parallel.outputs import check_outputs
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.autocast import autocast_set_aside
from nngeo_core.sweep.centring import CentredAccumulator
from nngeo_core.sweep.checkpoint import Checkpoint, Resumable
from nngeo_core.sweep.examples import Batch, count_examples, is_one_batch, iterate_batches
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.identity import computation
from nngeo_core.sweep.processes import agree, check_shard, together
from nngeo_core.sweep.untouched import undisturbed

__all__ = ["collect", "populate", "with_progress"]


def populate(
    generator: Generator,
    examples: Any,
    accumulators: Sequence[Accumulator],
    progress: bool | str = False,
    checkpoint: Checkpoint | None = None,
    only_pass: int | None = None,
) -> None:
    """Feed all accumulators from one sweep, with as many passes as the neediest asks.

    The model's buffers and the global random state are the same before and after, also when an exception ends the sweep.

    Args:
        generator: What differentiates the model.
        examples: One batch or a loader.
        accumulators: Filled in place.
        progress: Whether to show a progress bar for each pass, or the text that it starts with.
        checkpoint: Where the sums are written on the way, and taken over from if they are there; whoever has made use of
            the sums removes it.
        only_pass: Make this pass alone (0, 1, ...), to merge the sums of several processes by hand after it; None makes all.

    Raises:
        StorageError: The checkpoint is of another computation, naming what differs.
        ShapeError: The outputs of two processes are of different numbers.
        ValueError: There are no examples, no such pass, or a one-shot iterator is given where several passes are needed.
        UnsupportedOperationError: The generator has no Jacobians; or the likelihood is centred, and an accumulator is not.
        DistributedError: The processes of the generator's group, whose sums are put together after each pass, compute
            different things; or one of them failed, which the error names.
    """
    group = generator.group
    what = ", ".join(type(sums).__name__ for sums in accumulators)
    with together(group, f"{what}: start"):
        numbers = _passes(generator, examples, accumulators, only_pass)
        described = computation(generator, accumulators) if checkpoint or group else {}
        if group is not None:
            check_shard(examples, group)
    if group is not None:
        agree(group, f"{what}: start", described)
    with together(group, f"{what}: checkpoint"):
        resumable = (
            None if checkpoint is None else Resumable(checkpoint, generator, examples, accumulators, numbers, described)
        )
    for number in numbers:
        state = "new" if resumable is None else resumable.state_of(number)
        if state == "done":
            continue
        active = [accumulator for accumulator in accumulators if number < accumulator.passes]
        step = f"pass {number + 1}/{max(sums.passes for sums in accumulators)}"
        with together(group, f"{what}: {step}"):
            _make_pass(generator, examples, active, number, state, _label(progress, step, group), resumable)
        if group is not None:
            check_outputs(generator.seen_outputs, group, f"{what}: {step}")
            for accumulator in active:
                accumulator.reduce_(group, f"{what}: sums of {step}")
        if not active[0].n_examples:
            raise ValueError(f"no examples: {type(examples).__name__} is empty; a matrix needs at least one example")


def _passes(generator: Generator, examples: Any, accumulators: Sequence[Accumulator], only_pass: int | None) -> range:
    """The passes to make, if these can be made."""
    if not isinstance(generator, Generator):
        raise UnsupportedOperationError(
            f"{type(generator).__name__} has products and no Jacobians, which {type(accumulators[0]).__name__} sums; "
            "Hessian(..., representation) makes what can be made of it: 'implicit', 'dense', 'blockdiag'"
        )
    if generator.likelihood.centred and not all(isinstance(sums, CentredAccumulator) for sums in accumulators):
        raise UnsupportedOperationError("this likelihood subtracts a mean; give CentredAccumulator(accumulator)")
    passes = max(accumulator.passes for accumulator in accumulators)
    if only_pass is not None and only_pass not in range(passes):
        raise ValueError(f"these sums take the passes 0 to {passes - 1}, got only_pass={only_pass}")
    numbers = range(passes) if only_pass is None else range(only_pass, only_pass + 1)
    if len(numbers) > 1 and isinstance(examples, Iterator):
        raise ValueError(
            f"{passes} passes over the data are needed and {type(examples).__name__} can be read only once; "
            "give a loader that can be iterated again"
        )
    return numbers


def _make_pass(
    generator: Generator,
    examples: Any,
    active: Sequence[Accumulator],
    number: int,
    state: str,
    description: str | None,
    resumable: Resumable | None,
) -> None:
    """One pass over this process's examples."""
    with undisturbed(generator.model, generator.device), torch.no_grad():
        for accumulator in active if state == "new" else ():
            accumulator.begin_pass(number)
        if resumable is not None and state == "new" and number > resumable.first:
            resumable.advance(number)
        batches = with_progress(examples, description)
        for part in [batches] if resumable is None else resumable.segments(batches, number):
            _add(generator, part, active)


def _label(progress: bool | str, step: str, group: Group | None) -> str | None:
    """What a progress bar says; the first of several processes has one."""
    if not progress or (group is not None and group.rank):
        return None
    return f"{progress}: {step}" if isinstance(progress, str) else step


def collect(
    generator: Generator,
    examples: Any,
    accumulators: Sequence[Accumulator],
    progress: bool | str = False,
    checkpoint: Checkpoint | None = None,
) -> list[Any]:
    """`populate`, then the data of each matrix, as ordinary tensors whatever mode the caller is in.

    Takes and raises what `populate` does.
    """
    sums = [CentredAccumulator(part) for part in accumulators] if generator.likelihood.centred else accumulators
    populate(generator, examples, sums, progress, checkpoint)
    with torch.inference_mode(False), torch.no_grad(), autocast_set_aside(generator.device):
        found = [accumulator.finalize() for accumulator in accumulators]
    if checkpoint is not None:
        with together(generator.group, "the end, before the checkpoints are removed"):
            pass
        checkpoint.remove()
    return found


def _add(generator: Generator, batches: Iterator[Batch], accumulators: Sequence[Accumulator]) -> None:
    with closing(generator.stream(batches)) as stream:
        for batch in stream:
            for accumulator in accumulators:
                accumulator.update(batch)
            del batch  # or it would still be there while the next one is made


def with_progress(examples: Any, description: str | None) -> Iterator[Batch]:
    """The batches of `examples`, counted by a progress bar that shows examples per second if there is a description."""
    batches: Iterable[Batch] = iterate_batches(examples)
    if description is None:
        yield from batches
        return
    number = 1 if is_one_batch(examples) else len(examples) if isinstance(examples, Sized) else None
    seen = 0
    with tqdm(total=number, desc=description, unit="batch") as bar:
        for batch in batches:
            yield batch
            seen += count_examples(batch)
            elapsed = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{seen / elapsed:.0f} examples/s" if elapsed else "", refresh=False)
            bar.update()
