"""One kernel for the examples of several processes: each computes some of its blocks, and all get the whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from nngeo_core.jacobians.contraction import GramMethod, Pairing
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.generator import Generator
from nngeo_ntk.buffers import Buffer, empty_kernel
from nngeo_ntk.chunks import DEFAULT_MEMORY_BUDGET
from nngeo_ntk.implicit_jacobian import common_outputs
from nngeo_ntk.kernels import compute_kernel
from nngeo_ntk.recorded import Recorded
from nngeo_ntk.ring import Captured, Replay, captured, visitors

__all__ = ["shared_kernel"]

_WHAT = "a kernel"


def shared_kernel(
    generator: Generator,
    examples: Any,
    others: Any = None,
    pairing: Pairing = "all",
    method: GramMethod | None = None,
    out: Buffer | None = None,
    progress: bool = False,
) -> Tensor:
    """`compute_kernel` of the examples of all processes of the generator's group, those of the first process first.

    Each process captures the Jacobians of its examples once, if they fit the memory budget, and hands them around the ring;
    each pair of processes meets once, on one of the two. The blocks are then summed over all processes into the whole.
    """
    group = generator.group
    if group is None or group.size == 1:
        return compute_kernel(generator, examples, others, pairing, method, out, progress)
    rows = Recorded.of(generator, examples)
    columns = None if others is None else Recorded.of(generator, others)
    c, n = common_outputs(generator, rows, columns), rows.total
    m = n if columns is None else columns.total
    shapes: dict[Pairing, tuple[int, ...]] = {"all": (c, n, c, m), "equal": (c, n, m), "summed": (n, m)}
    job = _Job(generator, group, rows, columns, pairing, method, progress and group.rank == 0)
    return job.computed(shapes[pairing], out)


@dataclass
class _Job:
    generator: Generator
    group: Group
    rows: Recorded
    columns: Recorded | None
    pairing: Pairing
    method: GramMethod | None
    progress: bool

    def computed(self, shape: tuple[int, ...], out: Buffer | None) -> Tensor:
        """The kernel."""
        budget = self.generator.memory_budget or DEFAULT_MEMORY_BUDGET
        sent = self.rows if self.columns is None else self.columns
        travelling = captured(self.generator, sent, budget)
        with self.group.together(_WHAT):
            portion = next(travelling, None)
            own = self._own(portion, budget)
        dtypes = [
            getattr(torch, name)
            for name in self.group.gather_values(None if portion is None else _name(portion), _WHAT)
            if name
        ]
        with self.group.together(_WHAT):
            dtype = reduce(torch.promote_types, dtypes)
            kernel = empty_kernel(out, shape, dtype, self.generator.device, "the kernel of all processes' examples")
        kernel.zero_()
        first, failure = sent.start, self._attempt(kernel, own, None, sent.start)
        while True:
            with self.group.together(_WHAT, int(portion is not None)) as left:
                if failure is not None:
                    raise failure
            if not any(left):
                break
            for place, visiting in self._visitors(portion, first):
                failure = failure or self._attempt(kernel, own, visiting, place)
            first += 0 if portion is None else len(portion)
            with self.group.together(_WHAT):
                portion = next(travelling, None)
        self.group.sum_(kernel, _WHAT)
        return kernel

    def _own(self, portion: Captured | None, budget: int) -> Recorded:
        """The rows: by their Jacobians if these are all there, or fit the budget."""
        if self.columns is not None and len(self.rows):
            portion = next(captured(self.generator, self.rows, budget))
        return portion if portion is not None and len(portion) == len(self.rows) else self.rows

    def _visitors(self, portion: Captured | None, first: int) -> Iterator[tuple[int, Captured]]:
        """Which Jacobians of other processes this one meets: of a symmetric kernel, those of half the ring."""
        size, rank = self.group.size, self.group.rank
        symmetric = self.columns is None
        for hop, place, visiting in visitors(portion, first, size // 2 if symmetric else size - 1, self.group, _WHAT):
            twice = symmetric and 2 * hop == size  # both meet the other one
            if len(self.rows) and not (twice and rank > (rank - hop) % size):
                yield place, visiting

    def _attempt(self, kernel: Tensor, own: Recorded, visiting: Captured | None, place: int) -> Exception | None:
        """Fill the block of this process's rows and of its own columns, or a visitor's; what went wrong is for later."""
        try:
            self._meet(kernel, own, visiting, place)
        except Exception as error:
            return error
        return None

    def _meet(self, kernel: Tensor, own: Recorded, visiting: Captured | None, place: int) -> None:
        columns = self.columns if visiting is None else visiting
        if not len(own) or (columns is not None and not len(columns)):
            return
        mine = slice(self.rows.start, self.rows.start + len(self.rows))
        theirs = slice(place, place + len(own if columns is None else columns))
        block = self._block(kernel, mine, theirs)
        replay: Any = Replay(self.generator)
        show = self.progress and visiting is None
        compute_kernel(replay, own, columns, self.pairing, self.method, block, show)
        if self.columns is None and visiting is not None:
            mirrored = block.permute(2, 3, 0, 1) if self.pairing == "all" else block.mT
            self._block(kernel, theirs, mine).copy_(mirrored)

    def _block(self, kernel: Tensor, rows: slice, columns: slice) -> Tensor:
        if self.pairing == "all":
            return kernel[:, rows, :, columns]
        return kernel[..., rows, columns]


def _name(portion: Captured) -> str:
    return str(portion.batches[0].dtype).removeprefix("torch.")
