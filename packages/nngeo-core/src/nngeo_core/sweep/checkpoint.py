"""Checkpoint: a long pass that is killed goes on, when it is started again, where it last wrote its sums to a file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from nngeo_core.errors import StorageError
from nngeo_core.parallel.group import Group
from nngeo_core.storage import Stored, read_file, remove_file, write_file
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.examples import Batch
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.identity import batch_digest, first_difference
from nngeo_core.sweep.random_state import random_state, restore_random_state

__all__ = ["Checkpoint", "Resumable", "checkpoint_in"]


@dataclass(frozen=True)
class Checkpoint:
    """Where, and after how many batches, a sweep writes its sums.

    Args:
        folder: Made if it is not there; each process of a distributed run has one file in it.
        every: How many batches lie between two files. Small batches are run together within these only.

    Raises:
        ValueError: `every` is no positive integer.
    """

    folder: str | os.PathLike[str]
    every: int = 100

    def __post_init__(self) -> None:
        """Check the number."""
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"checkpoint_every is a number of batches, at least 1; got {self.every!r}")

    @property
    def path(self) -> Path:
        """The file of this process, by its rank, which is the same when it is started again."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else int(os.environ.get("RANK", "0"))
        return Path(self.folder) / f"checkpoint-{rank}.safetensors"

    @property
    def following(self) -> Path:
        """Where this process writes what it begins a pass with, until all processes that share the computation have."""
        return self.path.with_suffix(".next.safetensors")

    def remove(self) -> None:
        """Remove the files: the matrix is there."""
        remove_file(self.path)
        remove_file(self.following)


def checkpoint_in(folder: str | os.PathLike[str] | None, every: int) -> Checkpoint | None:
    """The checkpoint that arguments `checkpoint=` and `checkpoint_every=` mean; None for no folder."""
    return None if folder is None else Checkpoint(folder, every)


@dataclass
class _Place:
    """How far a sweep is: the pass, the batches read in it, and digests of these and of the first of them."""

    number: int
    batches: int = 0
    first: str = ""
    all: str = ""

    def pass_over(self, batch: Batch) -> None:
        """Note that a batch was read."""
        digest = batch_digest(batch)
        self.first = self.first or digest
        self.all = sha256(f"{self.all}{digest}".encode()).hexdigest()
        self.batches += 1


class Resumable:
    """A sweep whose sums are written every few batches, and are taken over from a file if there is one.

    A file is written where all that was read has been added to the sums, so that a resumed sweep joins and cuts batches as
    one that was never interrupted, and adds them in the same order. What was read is read again, and compared.

    Args:
        checkpoint: Where and how often.
        generator: Differentiates the model.
        examples: The batches, which must be the same ones each time.
        accumulators: The sums, taken over from the file.
        passes: The passes to make.
        described: What tells the computation from others: `computation` of generator and accumulators.

    Raises:
        StorageError: The file is of another computation, naming what differs, or is damaged.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        generator: Generator,
        examples: Any,
        accumulators: Sequence[Accumulator],
        passes: range,
        described: Mapping[str, Any],
    ) -> None:
        self.checkpoint = checkpoint
        self.generator = generator
        self.examples = examples
        self.accumulators = list(accumulators)
        self.first = passes.start
        self._computation = {
            "checkpoint_every": checkpoint.every,
            "the passes": [passes.start, passes.stop],
            **described,
        }
        self._stored: Stored | None = None
        self._place = _Place(passes.start)
        self._start: dict[str, torch.Tensor] | None = None
        if generator.group is not None:
            self._computation["the number of processes"] = generator.group.size
        stored = self._read(checkpoint.path)
        if generator.group is not None:
            stored = self._common(stored, generator.group)
        if stored is not None:
            self._take_over(stored)

    def _read(self, path: Path) -> Stored | None:
        """What a file holds, if it is there and of this computation."""
        if not path.exists():
            return None
        stored = read_file(path, "checkpoint", self.generator.device)
        difference = first_difference(stored.header["computation"], self._computation)
        if difference:
            self._refuse(difference)
        return stored

    def _common(self, stored: Stored | None, group: Group) -> Stored | None:
        """This process's file of the pass that the furthest process is in; None if it begins anew.

        Sums of several processes are put together between two passes, so that all are to go on in the same one. Who was
        stopped there has the beginning of the next pass in a second file; where neither file is of that pass, as when some
        had finished and removed theirs, all begin anew, but in the first pass, whose sums are each process's own.
        """
        what = "looking for checkpoints"
        with group.together(what, _pass_of(stored)) as passes:
            following = self._read(self.checkpoint.following)
        furthest = max(passes)
        found = next((one for one in (stored, following) if _pass_of(one) == furthest), None)
        with group.together(what, int(found is not None)) as whole:
            pass
        if found is None or not (all(whole) or furthest == self._place.number):
            self.checkpoint.remove()
            return None
        if found is following:
            os.replace(self.checkpoint.following, self.checkpoint.path)
        remove_file(self.checkpoint.following)
        return found

    def advance(self, number: int) -> None:
        """Write what a later pass begins with, which the processes that share the computation have just put together."""
        group = self.generator.group
        if group is None:
            return
        self._place, self._start = _Place(number), self._states()
        with group.together(f"the checkpoint before pass {number + 1}"):
            self._write(self.checkpoint.following)
        os.replace(self.checkpoint.following, self.checkpoint.path)

    def _take_over(self, stored: Stored) -> None:
        self._stored = stored
        self._place = _Place(**stored.header["place"])
        for place, sums in enumerate(self.accumulators):
            sums.load_state_dict(self._part(f"{place}."))

    def _part(self, start: str) -> dict[str, torch.Tensor]:
        held = {} if self._stored is None else self._stored.tensors
        return {key.removeprefix(start): part for key, part in held.items() if key.startswith(start)}

    def _refuse(self, difference: str) -> None:
        raise StorageError(
            f"the checkpoint '{self.checkpoint.path}' is of another computation, which differs in {difference}. Give "
            "checkpoint= another folder, or remove that file to begin anew"
        )

    def state_of(self, number: int) -> str:
        """Whether a pass is "done", has "begun" in an earlier run that is gone on with, or is "new"."""
        if number < self._place.number:
            return "done"
        return "begun" if self._stored is not None and number == self._place.number else "new"

    def segments(self, batches: Iterator[Batch], number: int) -> Iterator[Iterator[Batch]]:
        """What is left of a pass, in parts after each of which the sums are written.

        Whoever iterates adds all of a part to the accumulators before asking for the next one, and does so inside
        `undisturbed`.

        Args:
            batches: All batches of the pass, not read yet.
            number: The pass; its accumulators have begun it, unless it is the one to go on with.
        """
        resumes, self._start = self._stored is not None, self._states()
        restore_random_state(self._start, self.examples)
        if resumes:
            self._read_again(batches)
            self._stored = None
        else:
            self._place = _Place(number)
        every, before = self.checkpoint.every, self._place.batches
        while before == self._place.batches:
            yield self._watched(islice(batches, every))
            before += every
            self._write(self.checkpoint.path)

    def _states(self) -> dict[str, torch.Tensor]:
        """The random states that the pass begins with: the global ones are those of the first pass."""
        if self._stored is not None:
            return {key: state.cpu() for key, state in self._part("random.").items()}
        first = {key: state for key, state in (self._start or {}).items() if not key.startswith("loader.")}
        return random_state(self.examples) | first

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._place.pass_over(batch)
            yield batch

    def _read_again(self, batches: Iterator[Batch]) -> None:
        """Go over the batches that are in the sums; the generator sees the first of them as it did then."""
        wanted, self._place = self._place, _Place(self._place.number)
        for batch in islice(batches, wanted.batches):
            self._place.pass_over(batch)
            if self._place.batches == 1:
                if self._place.first != wanted.first:
                    self._refuse("the first batch")
                with closing(self.generator.stream(iter([batch]))) as stream:
                    next(stream, None)
        if self._place != wanted:
            self._refuse(
                f"the batches: after the first, {wanted.batches} others were read there than the {self._place.batches} here; "
                "resuming takes a loader that gives the same batches each time"
            )

    def _write(self, path: Path) -> None:
        tensors = {f"random.{key}": state for key, state in (self._start or {}).items()}
        for place, sums in enumerate(self.accumulators):
            tensors |= {f"{place}.{key}": part for key, part in sums.state_dict().items()}
        header = {
            "computation": self._computation,
            "place": vars(self._place),
            "examples": max(sums.n_examples for sums in self.accumulators),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, Stored("checkpoint", header, tensors))


def _pass_of(stored: Stored | None) -> int:
    """The pass that a checkpoint is in; -1 for none."""
    return -1 if stored is None else int(stored.header["place"]["number"])
