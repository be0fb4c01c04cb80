"""Group: the processes of a computation, as collectives that name their operation and count what they exchange."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor

from nngeo_core.errors import DistributedError
from nngeo_core.parallel.packing import Packed, decoded, described, encoded, in_buckets, number_of
from nngeo_core.storage import tensor_bytes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Group"]

_TOLD = "_told_to_other_processes"
"""The attribute that marks an error which the other processes know of."""


class Group:
    """The processes among which a computation is shared: torch.distributed's process group, and nothing beside it.

    Each method is a collective, which all processes call in the same order. `traffic` counts the bytes of the tensors that
    this process hands to collectives or receives from them, by the kind of operation: "sum", "gather", "broadcast", "ring"
    and "status" (three numbers of each process, before and after a pass, and short texts).

    Args:
        process_group: torch.distributed's; None for the default group.
        device: Where tensors are that come from other processes.

    Raises:
        ValueError: This process is none of the group.
    """

    def __init__(self, process_group: "ProcessGroup | None" = None, device: torch.device | str = "cpu") -> None:
        chosen = dist.group.WORLD if process_group is None else process_group
        assert chosen is not None, "torch.distributed.init_process_group() comes first"
        self.rank = dist.get_rank(chosen)
        if self.rank < 0:
            raise ValueError(
                f"process {dist.get_rank()} is none of the given process_group; call this on its members alone"
            )
        self._process_group = ref(chosen)  # its threads end with torch.distributed, not with the last matrix
        self.size = dist.get_world_size(chosen)
        self.device = torch.device(device)
        self.traffic: Counter[str] = Counter()

    @property
    def process_group(self) -> "ProcessGroup":
        """torch.distributed's.

        Raises:
            DistributedError: It was destroyed.
        """
        found = self._process_group()
        if found is None:
            raise DistributedError(
                "the process group that this was computed by was destroyed; initialize torch.distributed again, and give "
                "distributed=True"
            )
        return found

    def sum_(self, tensor: Tensor, what: str) -> None:
        """Replace a tensor by its sum over all processes, the same bits on each.

        Args:
            tensor: Of one shape and dtype everywhere.
            what: The operation, for errors; so for all methods.
        """
        if self.size == 1 or not tensor.numel():
            return
        with self._named(what), torch.no_grad():
            sent = self._sendable(tensor)
            dist.all_reduce(sent, group=self.process_group)
            self.traffic["sum"] += sent.nbytes
            if sent is not tensor:
                tensor.copy_(sent)

    def sum_named(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """The sums over all processes of tensors by name; who lacks a name adds zero. Small ones travel together.

        They are contiguous on all processes: what is computed from them takes the same steps, to the same bits.

        Raises:
            DistributedError: Two processes have tensors of different shapes or dtypes under one name.
        """
        if self.size == 1:
            return dict(tensors)
        mine = {name: described(tensor) for name, tensor in tensors.items()}
        union: dict[str, Any] = {}
        for rank, theirs in enumerate(self.gather_values(mine, what)):
            for name, description in theirs.items():
                if union.setdefault(name, description) != description:
                    raise DistributedError(
                        f"{what}: process {rank} sums '{name}' as {description}, and an earlier one as {union[name]}"
                    )
        whole = {
            name: tensors[name].contiguous() if name in tensors else self._zeros(shape, dtype)
            for name, (shape, dtype) in union.items()
        }
        for bucket in in_buckets(whole):
            self.sum_(bucket.buffer, what)
            bucket.unpack()
        return whole

    def check_same(self, tensor: Tensor, what: str) -> None:
        """See that all processes have the same tensor, by its digest.

        Raises:
            DistributedError: They have different ones.
        """
        with self.together(what, number_of(tensor_bytes(tensor))) as digests:
            pass
        if len(set(digests)) > 1:
            raise DistributedError(
                f"{what} is not the same on all {self.size} processes, which compute one result together; where it is drawn at "
                "random, give each of them generator=torch.Generator().manual_seed(...) with one seed, or broadcast it"
            )

    def broadcast_(self, tensor: Tensor, source: int, what: str, kind: str = "broadcast") -> None:
        """Replace a tensor by that of process `source`; its bytes count as of this kind."""
        if self.size == 1 or not tensor.numel():
            return
        with self._named(what), torch.no_grad():
            sent = self._sendable(tensor)
            dist.broadcast(sent, dist.get_global_rank(self.process_group, source), group=self.process_group)
            self.traffic[kind] += sent.nbytes
            if sent is not tensor:
                tensor.copy_(sent)

    def gather(self, tensor: Tensor | None, what: str) -> list[Tensor | None]:
        """The tensor of each process, contiguous, of whatever shapes; None of who has none."""
        if self.size == 1:
            return [tensor]
        tensor = None if tensor is None else tensor.contiguous()
        found: list[Tensor | None] = []
        for source, theirs in enumerate(self.gather_values(None if tensor is None else described(tensor), what)):
            whole = tensor if source == self.rank or theirs is None else self._zeros(*theirs)
            if whole is not None and theirs is not None:
                self.broadcast_(whole, source, what, "gather")
            found.append(None if theirs is None else whole)
        return found

    def gather_values(self, value: Any, what: str) -> list[Any]:
        """Some value of each process that JSON keeps; for small ones."""
        data = encoded(value)
        return self._texts(data, self._settle(what, len(data), None), what)

    def _texts(self, data: Tensor, lengths: Sequence[int], what: str) -> list[Any]:
        """What the texts of all processes, whose lengths are known, say in JSON."""
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device="cpu")
        padded[: len(data)] = data
        texts = self._all_gather(padded, what)
        return [decoded(text[:length]) for text, length in zip(texts, lengths, strict=True)]

    def shift(self, content: Packed, what: str) -> Packed:
        """Hand something to the next process of the ring, and take over what the one before hands on."""
        if self.size == 1:
            return content
        header = torch.tensor([len(content.header), content.data.numel()], dtype=torch.int64, device="cpu")
        sizes = self._exchange(header, torch.empty_like(header), what, "status")
        text = self._exchange(
            content.header, torch.empty(int(sizes[0]), dtype=torch.uint8, device="cpu"), what, "status"
        )
        theirs = torch.empty(int(sizes[1]), dtype=torch.uint8, device=self.device)
        data = self._exchange(content.data, theirs, what, "ring")
        return Packed(text, data)

    @contextmanager
    def together(self, what: str, number: int = 0) -> Iterator[list[int]]:
        """A part of the work that each process does by itself; it ends on all of them, or fails on all of them.

        What comes back from `with` is filled, at the end, with a number of each process: the one that this process has put
        there as the only entry.

        Args:
            what: The operation. Processes that are in different ones find out here.
            number: The number, where it is known before.

        Raises:
            DistributedError: The work failed on another process, which is named with its error; or that one is elsewhere.
        """
        numbers = [number]
        with self.telling(what):
            yield numbers
        numbers[:] = self._settle(what, numbers[0], None)

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """A part of the work, with collectives in it or not, whose errors are told to the other processes.

        They find out where they next see that all processes are well, as `together` does, and nobody is told twice.
        """
        try:
            yield
        except Exception as error:
            if not isinstance(error, DistributedError) and not hasattr(error, _TOLD):
                setattr(error, _TOLD, True)
                with suppress(DistributedError):  # the others may have gone
                    self._settle(what, 0, error)
            raise

    def _settle(self, what: str, number: int, failure: Exception | None) -> list[int]:
        """Exchange numbers, unless some process failed or is at another operation."""
        if self.size == 1:
            return [number]
        states = self._numbers([number_of(what.encode()), failure is not None, number], what)
        if len({operation for operation, _, _ in states}) == 1 and not any(failed for _, failed, _ in states):
            return [found for _, _, found in states]
        reason = "" if failure is None else f"{type(failure).__name__}: {failure}"
        data = encoded([what, reason])
        lengths = [length for (length,) in self._numbers([len(data)], what)]
        texts = self._texts(data, lengths, what)
        broken = [
            f"process {rank} raised {text}" + ("" if place == what else f" (in '{place}')")
            for rank, (place, text) in enumerate(texts)
            if text
        ]
        places = [f"process {rank} at '{place}'" for rank, (place, _) in enumerate(texts)]
        if broken:
            raise DistributedError(f"{what} ends on all processes, because {'; '.join(broken)}")
        raise DistributedError(
            f"the processes are at different operations: {', '.join(places)}. All of them make the same calls in one order"
        )

    def _numbers(self, mine: Sequence[int], what: str) -> list[list[int]]:
        """Some integers of each process."""
        gathered = self._all_gather(torch.tensor(list(mine), dtype=torch.int64, device="cpu"), what)
        return [[int(number) for number in numbers] for numbers in gathered]

    def _all_gather(self, mine: Tensor, what: str) -> list[Tensor]:
        """A tensor on the CPU of each process, of one shape."""
        if self.size == 1:
            return [mine]
        with self._named(what):
            sent = mine.to(self._wire(torch.device("cpu")))
            found = [torch.empty_like(sent) for _ in range(self.size)]
            dist.all_gather(found, sent, group=self.process_group)
            self.traffic["status"] += sum(part.nbytes for part in found)
            return [part.cpu() for part in found]

    def _exchange(self, mine: Tensor, theirs: Tensor, what: str, kind: str) -> Tensor:
        """Send one tensor to the next process, and fill another one from the process before."""
        ahead, behind = (dist.get_global_rank(self.process_group, (self.rank + step) % self.size) for step in (1, -1))
        sent, received = self._sendable(mine), self._sendable(theirs)
        transfers = [
            dist.P2POp(call, tensor, peer, self.process_group)
            for call, tensor, peer in ((dist.isend, sent, ahead), (dist.irecv, received, behind))
            if tensor.numel()
        ]
        with self._named(what):
            for work in dist.batch_isend_irecv(transfers) if transfers else ():
                work.wait()
        self.traffic[kind] += sent.nbytes
        return received.to(theirs.device)

    def _zeros(self, shape: Sequence[int], dtype: str) -> Tensor:
        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.device)

    def _sendable(self, tensor: Tensor) -> Tensor:
        """The tensor in a memory that the group's backend reads: itself, if it can be."""
        return tensor.detach().to(self._wire(tensor.device)).contiguous()

    def _wire(self, device: torch.device) -> torch.device:
        """Where a tensor has to be to be sent: gloo takes what is on the CPU, nccl what is on a GPU."""
        config = dist.get_backend_config(self.process_group)
        backends = dict(part.split(":") for part in config.split(",") if ":" in part)
        if backends.get(device.type, "gloo") != "gloo" or (device.type == "cpu" and "cpu" in backends):
            return device
        if "cpu" in backends:
            return torch.device("cpu")
        return self.device if self.device.type in backends else torch.device(next(iter(backends)))

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Within it, torch.distributed's errors say at which operation of which process they came."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise DistributedError(
                f"{what} failed on process {self.rank} of {self.size}: {str(error).splitlines()[0]}. Another process has died "
                "or did not arrive within the group's timeout (`timeout` of torch.distributed.init_process_group); start all "
                "of them again, with the same checkpoint= if there was one"
            ) from error

    def __deepcopy__(self, memo: Any) -> "Group":
        """Itself: processes are not copied."""
        return self
