"""Passes: forward passes of a model with hooks on its modules, and the Jacobians that are read off them."""

from collections.abc import Sequence
from functools import partial

import torch

from nngeo_core.conventions import result_dtype
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.sweep.examples import Batch, count_examples, select_examples
from nngeo_core.sweep.generator import Generator
from nngeo_generators.capture import Capture, listening
from nngeo_generators.joining import Part
from nngeo_generators.network import Network
from nngeo_generators.plan import Use
from nngeo_generators.trust import check_finite

__all__ = ["Passes"]


class Passes:
    """Passes of a model.

    Args:
        generator: Knows the directions, and what is to be checked.
        network: Maps a batch to the outputs.
    """

    def __init__(self, generator: Generator, network: Network) -> None:
        self.generator = generator
        self.network = network

    def forward(self, part: Part, plan: Sequence[Use], batched: bool) -> Capture:
        """One forward pass with hooks on, and one over an example alone where calls are to be run again.

        Args:
            part: The examples.
            plan: The uses of the layers' parameters.
            batched: Whether several directions can go backward at once.

        Raises:
            UnsupportedLayerError: The captured calls do not fit the examples.
            NonFiniteError: An output is not finite; names the batch and the module.
        """
        capture = self._listen(part.batch, plan, batched)
        check_finite(capture.outputs, self.generator.model, partial(self.network, part.batch), part.numbers)
        capture.check_unchanged()
        if capture.needs_axes() and not capture.refused:
            capture.find_axes(self._listen(select_examples(part.batch, slice(0, 1)), plan, batched))
        if self.generator.check != "off":
            capture.check_order()
        return capture

    def _listen(self, batch: Batch, plan: Sequence[Use], batched: bool) -> Capture:
        capture = Capture(plan, count_examples(batch), batched)
        try:
            with torch.enable_grad(), listening(capture):
                capture.outputs = self.network(batch)
        except Exception as error:
            if not capture.altered or isinstance(error, torch.OutOfMemoryError):
                raise
            capture.outputs = self.network(batch)  # raises what the model itself raises
            capture.refused |= capture.altered
        return capture

    def jacobians(self, capture: Capture, batch: Batch, chosen: slice, total: int, positive: int) -> JacobianBatch:
        """The Jacobians of the captured examples for some of all directions, of which the first `positive` have no sign.

        Raises:
            UnsupportedLayerError: The capture was refused.
            ValueError: Directions of both signs are asked for.
        """
        capture.raise_refused()
        if chosen.start < positive < chosen.stop:
            raise ValueError(
                f"directions {chosen.start} to {chosen.stop} were asked for, of which those from {positive} on enter with a "
                f"minus sign; ask for slice({chosen.start}, {positive}) and slice({positive}, {chosen.stop}) one by one"
            )
        outputs = capture.outputs.detach()
        directions, mask = (
            self.generator.directions(outputs, batch, chosen),
            self.generator.position_mask(outputs, batch),
        )
        layers = capture.layer_jacobians(directions.to(outputs.dtype), keep_graph=chosen.stop < total, mask=mask)
        dtype = next((layer.dtype for layer in layers.values()), result_dtype(outputs.dtype))
        sign = 1 if chosen.start < positive or not total else -1
        return JacobianBatch(layers, capture.n, chosen, total, dtype, outputs.device, sign)
