"""The sums that become Kronecker factors."""

from collections.abc import Mapping
from dataclasses import astuple

import torch
from torch import Tensor

from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_reprs.kronecker import zero_factors

__all__ = ["KFACAccumulator"]


class KFACAccumulator(Accumulator):
    """Sums both factors of each layer's block."""

    def __init__(self, layer_collection: LayerCollection) -> None:
        super().__init__(layer_collection)
        self.layouts: dict[str, KroneckerLayout] = {}

    def accumulate(self, batch: JacobianBatch) -> None:
        """Add each layer's factors; the input factor does not depend on the directions and comes with the first slice."""
        for layer_id, jacobian in batch.layers.items():
            try:
                factors = jacobian.kronecker_factors(inputs=batch.first_slice)
            except UnsupportedOperationError as error:
                raise UnsupportedOperationError(
                    f"layer '{layer_id}': {error}. KFAC of the "
                    "other layers: layer_collection=LayerCollection.from_model(model, only=[nn.Linear, nn.Conv2d, ...])"
                ) from error
            self.layouts[layer_id] = factors.layout
            self.add(f"{layer_id}.inputs", factors.inputs)
            self.add(f"{layer_id}.outputs", factors.outputs)
        self.add("zero", torch.zeros((), dtype=batch.dtype, device=batch.device))

    def merge(self, other: Accumulator) -> None:
        """Add the sums of other examples."""
        super().merge(other)
        if isinstance(other, KFACAccumulator):
            self.layouts = other.layouts | self.layouts

    def state_dict(self) -> dict[str, Tensor]:
        """The example count and the sums, and where each layer's factors lie in its parameters."""
        layouts = {f"layouts.{layer_id}": torch.tensor(astuple(layout)) for layer_id, layout in self.layouts.items()}
        return {**super().state_dict(), **layouts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state)
        self.layouts = {}
        for key, numbers in state.items():
            if key.startswith("layouts."):
                groups, outputs, inputs, has_bias, leading_inputs = numbers.tolist()
                layout = KroneckerLayout(groups, outputs, inputs, bool(has_bias), leading_inputs)
                self.layouts[key.removeprefix("layouts.")] = layout

    def finalize(self) -> dict[str, KroneckerFactors]:
        """Both factors of each layer, averaged over examples; zero for a layer that was never called."""
        return {layer_id: self._factors(layer_id) for layer_id in self.layer_collection}

    def _factors(self, layer_id: str) -> KroneckerFactors:
        if layer_id not in self.layouts:
            zero = self.sums["zero"]
            return zero_factors(self.layer_collection[layer_id].numel(), zero.dtype, zero.device)
        inputs, outputs = (self.average(f"{layer_id}.{factor}") for factor in ("inputs", "outputs"))
        return KroneckerFactors(inputs, outputs, self.layouts[layer_id])
