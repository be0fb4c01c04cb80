"""The sums of a matrix made of parts: each part's own, over its layers."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nngeo_core.errors import DistributedError, NotPositiveDefiniteError, UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.matrices.pmat import PMat
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.generator import Generator
from nngeo_reprs.kfac import PMatKFAC
from nngeo_reprs.mixed_choice import Share, automatic

__all__ = ["MixedAccumulator", "listed", "naming_layers"]

_NAMED = 4
"""How many of a part's layers are named."""


@dataclass(frozen=True)
class _Part:
    """What one part needs: its kind, a generator about its layers, and its sums."""

    kind: type[PMat]
    generator: Generator
    sums: Accumulator


class MixedAccumulator(Accumulator):
    """Feeds each part's accumulator with the Jacobians of its layers.

    A layer that is assigned automatically is known to have Kronecker factors, or not to have them, when its first Jacobian
    arrives: whatever its type promises, a generator may have found that only the generic way is exact for it.

    Args:
        generator: Differentiates the model.
        shares: Which layers get which representation.

    Raises:
        UnsupportedOperationError: One of the representations stores no sums.
    """

    def __init__(self, generator: Generator, shares: Sequence[Share]) -> None:
        super().__init__(generator.layer_collection)
        self.generator = generator
        self.shares = tuple(shares)
        self._pass = 0
        self._divide(None)

    def _divide(self, without_factors: Sequence[str] | None) -> None:
        """Give each part its accumulator; None as long as no Jacobian was seen."""
        self.without_factors = without_factors
        shares = [
            part for share in self.shares for part in automatic(self.layer_collection, share, without_factors or ())
        ]
        self.parts = [_part(self.generator, share) for share in shares]
        self.passes = max(part.sums.passes for part in self.parts)
        self.signed = all(part.sums.signed for part in self.parts)
        self.structured = any(part.sums.structured for part in self.parts)

    def begin_pass(self, number: int) -> None:
        """Begin the pass of all parts that need it."""
        super().begin_pass(number)
        self._pass = number
        for part in self._active():
            part.sums.begin_pass(number)

    def _active(self) -> list[_Part]:
        return [part for part in self.parts if self._pass < part.sums.passes]

    def accumulate(self, batch: JacobianBatch) -> None:
        """Give each part the Jacobians of its layers."""
        if self.without_factors is None:
            self._settle(batch)
        for part in self._active():
            part.sums.n_examples = self.n_examples
            held = part.sums.layer_collection
            layers = {layer_id: jacobian for layer_id, jacobian in batch.layers.items() if layer_id in held}
            with naming_layers(part.kind, held):
                part.sums.accumulate(replace(batch, layers=layers))

    def _settle(self, batch: JacobianBatch) -> None:
        """Take back Kronecker factors from layers that were to have them automatically, and have none."""
        open_layers = {layer_id for share in self.shares if share.kind is None for layer_id in share.layers}
        hoped = [layer_id for part in self.parts if part.kind is PMatKFAC for layer_id in part.sums.layer_collection]
        lacking = [
            layer_id
            for layer_id in hoped
            if layer_id in open_layers and layer_id in batch.layers and not _has_factors(batch, layer_id)
        ]
        if lacking:
            self._divide(lacking)
            for part in self._active():
                part.sums.begin_pass(self._pass)
        self.without_factors = lacking

    def merge(self, other: Accumulator) -> None:
        """Add the sums of other examples in this pass; parts that it does not concern are complete, in both.

        Raises:
            TypeError: The other one is of another representation, or of the same ones for other layers.
            LayerCollectionMismatchError: It is about other parameters.
        """
        if isinstance(other, MixedAccumulator):
            if self.without_factors is None:
                self._divide(other.without_factors)
            mine, theirs = ([(part.kind, part.sums.layer_collection) for part in sums.parts] for sums in (self, other))
            if other.without_factors is not None and mine != theirs:
                raise TypeError(
                    f"sums merge with those of the same parts; got {_described(self.parts)} and {_described(other.parts)}. "
                    "Ask for both by the same mapping from layers to representations"
                )
        super().merge(other)
        if isinstance(other, MixedAccumulator) and other.without_factors is not None:
            for ours, added in zip(self.parts, other.parts, strict=True):
                if self._pass < ours.sums.passes:  # else it was complete before both began this pass
                    ours.sums.merge(added.sums)

    def reduce_(self, group: Group, what: str) -> None:
        """Take in the sums of all processes, part by part.

        Raises:
            DistributedError: Some layers have Kronecker factors on one process, and none on another one.
        """
        with group.together(what, self.n_examples) as counts:
            pass
        own, self.n_examples = self.n_examples, sum(counts)
        settled = [lacking for lacking in group.gather_values(self.without_factors, what) if lacking is not None]
        if any(lacking != settled[0] for lacking in settled):
            raise DistributedError(
                f"{what}: the layers that only the generic way is exact for, and which have no Kronecker factors, are "
                f"{' or '.join(map(str, settled))} on different processes. Ask for 'blockdiag' or 'diag' for them by a mapping"
            )
        if self.without_factors is None and settled:
            self._divide(settled[0])
            for part in self._active():
                part.sums.begin_pass(self._pass)
        for number, part in enumerate(self._active()):
            part.sums.n_examples = own
            part.sums.reduce_(group, f"{what}, part {number}")

    def identity(self) -> Any:
        """The class, and each part's layers and sums as far as they were asked for."""
        asked = [[list(share.layers), None if share.kind is None else share.kind.__name__] for share in self.shares]
        return [super().identity(), *asked]

    def state_dict(self) -> dict[str, Tensor]:
        """The counts of examples and passes, each part's sums under its number, and which layers have no factors."""
        state = {**super().state_dict(), "pass": torch.tensor(self._pass, device="cpu")}
        for number, part in enumerate(self.parts):
            state |= {f"{number}.{key}": value for key, value in part.sums.state_dict().items()}
        if self.without_factors is not None:
            order = list(self.layer_collection)
            places = [order.index(layer_id) for layer_id in self.without_factors]
            state["without_factors"] = torch.tensor(places, dtype=torch.long, device="cpu")
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        places = state.get("without_factors")
        order = list(self.layer_collection)
        self._pass = 0  # the parts' states say of which pass they are
        self._divide(None if places is None else [order[place] for place in places.tolist()])
        for number, part in enumerate(self.parts):
            start = f"{number}."
            part.sums.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
        self._pass = int(state["pass"])

    def finalize(self) -> tuple[PMat, ...]:
        """The parts."""
        found = []
        for part in self.parts:
            part.sums.n_examples = self.n_examples
            found.append(part.kind(part.generator, data=part.sums.finalize(), n_examples=self.n_examples))
        return tuple(found)


@contextmanager
def naming_layers(kind: type[PMat], layers: Collection[str]) -> Iterator[None]:
    """Within it, the errors of one part's operation name the part.

    Args:
        kind: Its representation.
        layers: The ids of its layers.
    """
    try:
        yield
    except (UnsupportedOperationError, NotPositiveDefiniteError) as error:
        raise type(error)(f"in the {kind.__name__} of {listed(layers)}: {error}") from error


def listed(layers: Collection[str]) -> str:
    """The ids of some layers, the first four of many."""
    names = ", ".join(f"'{layer_id}'" for layer_id in islice(layers, _NAMED))
    return names + (f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else "")


def _part(generator: Generator, share: Share) -> _Part:
    assert share.kind is not None, "an automatic share is divided before"
    part = generator.restricted(generator.layer_collection.restricted(share.layers))
    with naming_layers(share.kind, share.layers):
        sums = share.kind.prepare(part)
        if sums is None:
            raise UnsupportedOperationError(
                f"a {share.kind.__name__} stores no sums over the examples, from which the parts of a mixed matrix are made; "
                "compute it by itself, with layer_collection=LayerCollection.from_model(model, only=[...])"
            )
    return _Part(share.kind, part, sums)


def _has_factors(batch: JacobianBatch, layer_id: str) -> bool:
    try:
        batch.layers[layer_id].kronecker_factors(inputs=False)
    except UnsupportedOperationError:
        return False
    return True


def _described(parts: Sequence[_Part]) -> str:
    return ", ".join(f"{part.kind.__name__} of {list(part.sums.layer_collection)}" for part in parts)
