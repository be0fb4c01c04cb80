"""Trust: what is checked before a model's numbers are believed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nngeo_core.errors import NonFiniteError, UnsupportedLayerError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite

__all__ = ["check_alone", "check_finite", "check_modes", "check_repeatable", "differing_layers", "model_state"]


def check_modes(model: nn.Module) -> None:
    """Raise if a module mixes examples or draws random numbers.

    Raises:
        UnsupportedLayerError: Naming the module.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise UnsupportedLayerError(
                f"'{path}' ({type(module).__name__}) normalises with the statistics of the batch, so no derivative of one "
                "example exists; call model.eval() first"
                + ("" if module.training else ", and give it running statistics")
            )
        if module.training and _drops_out(module):
            raise UnsupportedLayerError(
                f"'{path}' ({type(module).__name__}) drops units at random in training mode, so two calls differ; "
                "call model.eval() first"
            )


def _drops_out(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0


def model_state(model: nn.Module) -> object:
    """What a check of the model holds for: it equals a later one until parameters or modes change."""
    parameters = tuple((id(p), p._version if not p.is_inference() else 0) for p in model.parameters())
    return parameters, tuple(module.training for module in model.modules())


def check_finite(outputs: Tensor, model: nn.Module, forward: Callable[[], Any], number: int) -> None:
    """Raise if the outputs of batch `number` have a NaN or an infinity; run `forward` again to find where it comes from.

    Raises:
        NonFiniteError: Naming the batch and the first module.
    """
    if all_finite(outputs):
        return
    found: list[str] = []

    def look(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not all(part.isfinite().all() for part in tree_leaves(output) if isinstance(part, Tensor)):
                found.append(f"'{path}' ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(look(path)) for path, module in model.named_modules() if path]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    raise NonFiniteError(
        f"batch {number}: the model's outputs have a NaN or an infinity; the first module to return one is "
        f"{found[0] if found else 'the model itself'}"
    )


def check_repeatable(first: Tensor, second: Tensor) -> None:
    """Raise unless two forward passes over the same examples agree.

    Raises:
        UnsupportedLayerError: The model draws random numbers.
    """
    if _differ(first, second):
        raise UnsupportedLayerError(
            "two forward passes over the same examples give different outputs: the model draws random numbers "
            "(functional dropout?), so its derivative is not defined; call model.eval(), or pass a `function` without them"
        )


def check_alone(alone: Tensor, together: Tensor) -> None:
    """Raise unless some examples' outputs are the same alone as in the whole batch.

    Args:
        alone: Their outputs without the others.
        together: Their outputs among the others.

    Raises:
        UnsupportedLayerError: The model mixes examples.
    """
    if _differ(alone, together):
        raise UnsupportedLayerError(
            "an example's outputs differ with the others in its batch: the model mixes examples (batch statistics, "
            "attention along the wrong axis), so no derivative of one example exists; the first dimension of every tensor "
            "must be that of the examples"
        )


def differing_layers(found: Mapping[str, Tensor], plain: Tensor, layers: LayerCollection) -> dict[str, str]:
    """Compare the Jacobian of each layer, summed over examples, with a plain gradient of the same cotangent.

    Args:
        found: J^T w of each layer, shape (d_l,); a layer without one is zero.
        plain: The gradient from autograd, shape (d,).
        layers: Where the layers lie in it.

    Returns:
        The layers that differ, with what may be the reason.

    Raises:
        NonFiniteError: The gradient has a NaN or an infinity; names a layer.
    """
    for layer_id, place in layers.slices().items():
        if not all_finite(plain[place]):
            raise NonFiniteError(
                f"the gradient of layer '{layer_id}' has a NaN or an infinity, though the outputs are finite: the model "
                "masks one that the layer reads or returns. Mask it before the layer"
            )
    whole = float(plain.norm())
    limit, rounding = _tolerance(plain) * whole, 100 * torch.finfo(plain.dtype).eps * whole
    differing: dict[str, str] = {}
    for layer_id, place in layers.slices().items():
        called = layer_id in found and bool(found[layer_id].any())
        error = plain[place] - found[layer_id].to(plain) if called else plain[place]
        if not float(error.norm()) <= (limit if called else rounding):
            differing[layer_id] = (
                f"what its modules' calls show differs from a plain gradient of the model by "
                f"{float(error.norm() / plain.norm()):.1e} of the whole gradient: its parameters are used outside the module's "
                "call (as in F.linear(h, module.weight)), a call was patched, or it was given the examples in another order"
            )
    return differing


def _differ(first: Tensor, second: Tensor) -> bool:
    return first.shape != second.shape or bool((first - second).norm() > _tolerance(first) * second.norm())


def _tolerance(tensor: Tensor) -> float:
    return max(1e-6, float(torch.finfo(tensor.dtype).eps ** 0.5))  # parts of a model may compute in float32
