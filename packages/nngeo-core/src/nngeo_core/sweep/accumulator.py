"""Accumulator: sums over Jacobians that become the data of a matrix."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import ShapeError, StorageError, UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.description import identify_layers
from nngeo_core.parallel.group import Group
from nngeo_core.parallel.packing import pack, unpack
from nngeo_core.plugins import registry
from nngeo_core.storage import Stored, read_file, write_file

__all__ = ["Accumulator"]


class Accumulator(ABC):
    """Sums over examples and directions, by name, in whatever shape a representation needs them.

    The sums of two parts of the data add up to the sums of the whole (`merge`), so one class serves one sweep, many sweeps,
    resumed ones and parallel ones. Subclasses add to `self.sums` in `accumulate` and divide by `self.n_examples` in
    `finalize`.

    Args:
        layer_collection: The parameters that the matrix is about.
    """

    passes: int = 1
    """How many passes over the data are needed."""
    signed: bool = False
    """Whether its sums are linear in J^T J and heed `batch.sign`: an indefinite metric has directions that subtract."""
    structured: bool = False
    """Whether they need to know what a layer's parameters are to one another, which rows of numbers do not tell."""

    def __init__(self, layer_collection: LayerCollection) -> None:
        self.layer_collection = layer_collection
        self.n_examples = 0
        self.sums: dict[str, Tensor] = {}

    def begin_pass(self, number: int) -> None:
        """Called before pass `number` (0, 1, ...); later passes count the examples anew, the first goes on counting."""
        if number:
            self.n_examples = 0

    def update(self, batch: JacobianBatch) -> None:
        """Add the Jacobians of some examples and directions.

        Raises:
            UnsupportedOperationError: The directions enter with a minus sign, and the sums are not linear in J^T J; or a
                layer has not the structure that the representation needs, with the plugins that failed to provide any.
        """
        if batch.sign < 0 and not self.signed:
            raise UnsupportedOperationError(
                f"{type(self).__name__} cannot take directions that enter with a minus sign, which an indefinite metric has: "
                "what it sums is not linear in J^T J. Use the dense, block-diagonal or diagonal representation, or a loss "
                "that is convex in the outputs"
            )
        if batch.first_slice:
            self.n_examples += batch.n_examples
        try:
            self.accumulate(batch)
        except UnsupportedOperationError as error:
            suspects = registry.problems()
            if not suspects:
                raise
            raise UnsupportedOperationError(f"{str(error).rstrip('.')}. {suspects}") from error

    @abstractmethod
    def accumulate(self, batch: JacobianBatch) -> None:
        """Add to `self.sums` what the batch contributes."""

    @abstractmethod
    def finalize(self) -> Any:
        """The data of the matrix, averaged over examples; it may take the memory of the sums, so it comes last and once."""

    def average(self, name: str) -> Tensor:
        """The sum of that name divided by the number of examples, in its own memory: it is among the sums no more."""
        return self.sums.pop(name).div_(self.n_examples)

    def add(self, name: str, value: Tensor) -> None:
        """Add a value to the sum of that name; the first one becomes the sum, so it must be nobody else's tensor."""
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value

    def merge(self, other: "Accumulator") -> None:
        """Add the sums of other examples, within the same pass and before `finalize`.

        Raises:
            TypeError: The other one is of another representation.
            LayerCollectionMismatchError: It is about other parameters.
        """
        if type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} merges with its own kind, got {type(other).__name__}")
        self.layer_collection.check_same(other.layer_collection)
        self.n_examples += other.n_examples
        for name, value in other.sums.items():
            self.add(name, value.clone())

    def reduce_(self, group: Group, what: str) -> None:
        """Take in the sums of all processes of a group, each of which calls this at the end of the same pass.

        Where `merge` adds sums by name, so does this, with a sum over all processes in place. Where a subclass has a `merge`
        of its own, the states of all processes travel around the ring and are merged in their order; one that can do with
        less overrides this too. The result is the same on all processes.

        Args:
            group: The processes.
            what: The operation, for errors.
        """
        if type(self).merge is Accumulator.merge:
            self._sum_over(group, what)
        else:
            self._merge_over(group, what)

    def _sum_over(self, group: Group, what: str) -> None:
        """Sum the example counts and the sums by name over all processes."""
        with group.together(what, self.n_examples) as counts:
            pass
        self.n_examples = sum(counts)
        self.sums = group.sum_named(self.sums, what)

    def _merge_over(self, group: Group, what: str) -> None:
        """Merge the states of all processes, the first one's first."""
        state = {name: part.contiguous() for name, part in self.state_dict().items()}
        order = sorted(state)
        travelling = pack(order, [state[name].to(group.device) for name in order], group.device)
        states = {group.rank: state}
        for step in range(1, group.size):
            travelling = group.shift(travelling, what)
            states[(group.rank - step) % group.size] = dict(zip(*unpack(travelling), strict=True))
        with group.together(what):
            self.load_state_dict(states[0])
            for rank in range(1, group.size):
                other = deepcopy(self)
                other.load_state_dict(states[rank])
                self.merge(other)

    def identity(self) -> Any:
        """What tells these sums from others about the same layers, in a form that JSON keeps: the class by default."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the example count and the sums, as tensors."""
        return {
            "n_examples": torch.tensor(self.n_examples, device="cpu"),
            **{f"sums.{k}": v.clone() for k, v in self.sums.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned, in the middle of the pass in which it did.

        Raises:
            ShapeError: The example count is missing.
        """
        if "n_examples" not in state:
            raise ShapeError(f"not the state of an accumulator: got the keys {sorted(state)}, expected 'n_examples'")
        self.n_examples = int(state["n_examples"])
        self.sums = {k.removeprefix("sums."): v.clone() for k, v in state.items() if k.startswith("sums.")}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sums to a file, for another process to merge or to go on with.

        Raises:
            StorageError: The file could not be written.
            OSError: The folder does not exist, or may not be written to.
        """
        write_file(path, Stored("sums", self._header(), self.state_dict()))

    def load(self, path: str | os.PathLike[str], map_location: torch.device | str | None = None) -> None:
        """Take over the sums of a file, in the middle of the pass in which they were saved.

        Args:
            path: What `save` wrote.
            map_location: The device of the sums; None for the CPU.

        Raises:
            StorageError: The file is damaged, or holds the sums of another representation or of other layers.
            OSError: There is no such file, or it may not be read.
        """
        stored = read_file(path, "sums", map_location)
        for what, mine in self._header().items():
            if stored.header[what] != mine:
                raise StorageError(
                    f"'{os.fspath(path)}' holds sums with the {what} {stored.header[what]}, and these have {mine}; load them "
                    "into sums made by the same `prepare` of a generator for the same layers"
                )
        self.load_state_dict(stored.tensors)

    def _header(self) -> dict[str, Any]:
        return {"representation": self.identity(), "layers": identify_layers(self.layer_collection)}
