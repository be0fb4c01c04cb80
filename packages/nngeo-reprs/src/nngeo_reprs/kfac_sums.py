"""The sums that become Kronecker factors."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.parallel.group import Group
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_reprs.kronecker import zero_factors
from nngeo_reprs.layouts import common_layouts, layouts_from_state, layouts_to_state

__all__ = ["KFACAccumulator"]


class KFACAccumulator(Accumulator):
    """Sums both factors of each layer's block."""

    reduced: ClassVar[bool] = False
    """Whether shared positions are made one first, as in KFAC-reduce."""

    def __init__(self, layer_collection: LayerCollection) -> None:
        super().__init__(layer_collection)
        self.layouts: dict[str, KroneckerLayout] = {}

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's factors; the input factor does not depend on the directions and comes with the first slice."""
        for layer_id, jacobian in batch.layers.items():
            try:
                chosen = jacobian.reduced() if self.reduced else jacobian
                factors = chosen.kronecker_factors(inputs=batch.first_slice)
            except UnsupportedOperationError as error:
                raise UnsupportedOperationError(
                    f"layer '{layer_id}': {error}. Kronecker factors where layers have them, and exact blocks or diagonals "
                    'elsewhere: representation="auto", or a mapping such as {nn.Linear: "kfac", None: "blockdiag"}'
                ) from error
            self.layouts[layer_id] = factors.layout
            self.add(f"{layer_id}.inputs", factors.inputs.to(batch.dtype))
            self.add(f"{layer_id}.outputs", factors.outputs.to(batch.dtype))
            del factors  # or they would still be there beside those of the next layer
        self.add("zero", torch.zeros((), dtype=batch.dtype, device=batch.device))

    def merge(self, other: Accumulator) -> None:
        """Add the sums of other examples."""
        super().merge(other)
        if isinstance(other, KFACAccumulator):
            self.layouts = other.layouts | self.layouts

    def reduce_(self, group: Group, what: str) -> None:
        """Take in the sums of all processes, and where they lie in the parameters, which not every process may know."""
        self.layouts = common_layouts(self.layouts, group, what)
        self._sum_over(group, what)

    def state_dict(self) -> dict[str, Tensor]:
        """The example count and the sums, and where each layer's factors lie in its parameters."""
        return {**super().state_dict(), **layouts_to_state(self.layouts)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.layouts = layouts_from_state(state)

    def finalize(self) -> dict[str, KroneckerFactors]:
        """Both factors of each layer, averaged over examples; zero for a layer that was never called."""
        return {layer_id: self._factors(layer_id) for layer_id in self.layer_collection}

    def _factors(self, layer_id: str) -> KroneckerFactors:
        if layer_id not in self.layouts:
            zero = self.sums["zero"]
            return zero_factors(self.layer_collection[layer_id].numel(), zero.dtype, zero.device)
        inputs, outputs = (self.average(f"{layer_id}.{factor}") for factor in ("inputs", "outputs"))
        return KroneckerFactors(inputs, outputs, self.layouts[layer_id])
