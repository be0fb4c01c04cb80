"""Trust: what is checked before a model's numbers are believed."""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nngeo_core.errors import NonFiniteError, UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.finite import all_finite

__all__ = ["check_finite", "check_repeatable", "checked_state", "differ", "differing_layers"]

NOISE = 1e4
"""Units of rounding, of the whole gradient, below which two ways to a layer's gradient may differ."""


def checked_state(model: nn.Module) -> object:
    """What a check of the model holds for: it equals a later one until parameters or modes change.

    Raises:
        UnsupportedLayerError: A module mixes examples or draws random numbers; names it.
    """
    modules = tuple(model.named_modules())
    _check_modes(modules)
    parameters = (p for _, module in modules for p in module._parameters.values() if p is not None)
    versions = tuple((id(p), p._version if not p.is_inference() else 0) for p in parameters)
    modes = tuple(getattr(module, "training", False) for _, module in modules)  # frozen TorchScript has none
    return versions, modes


def _check_modes(modules: Iterable[tuple[str, nn.Module]]) -> None:
    for path, module in modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise UnsupportedLayerError(
                f"'{path}' ({type(module).__name__}) normalises with the statistics of the batch, so no derivative of one "
                "example exists; call model.eval() first"
                + ("" if module.training else ", and give it running statistics")
            )
        if _drops_out(module) and module.training:
            raise UnsupportedLayerError(
                f"'{path}' ({type(module).__name__}) drops units at random in training mode, so two calls differ; "
                "call model.eval() first"
            )


def _drops_out(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0


def check_finite(outputs: Tensor, model: nn.Module, forward: Callable[[], Any], numbers: Sequence[int]) -> None:
    """Raise if the outputs have a NaN or an infinity; run `forward` again to find where it comes from.

    Args:
        outputs: Shape (n, ...).
        model: The user's model.
        forward: Computes the outputs.
        numbers: The number of the batch that each example came in.

    Raises:
        NonFiniteError: Naming the batch and the first module.
    """
    if all_finite(outputs):
        return
    number = next(number for row, number in zip(outputs, numbers, strict=True) if not row.isfinite().all())
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


def check_repeatable(first: Tensor, second: Tensor, computed: torch.dtype | None = None) -> None:
    """Raise unless two forward passes over the same examples agree, to the rounding of the dtype they were computed in.

    Raises:
        UnsupportedLayerError: The model draws random numbers.
    """
    if differ(first, second, computed):
        raise UnsupportedLayerError(
            "two forward passes over the same examples give different outputs: the model draws random numbers "
            "(functional dropout?), so its derivative is not defined; call model.eval(), or pass a `function` without them"
        )


def differing_layers(
    jacobians: Mapping[str, LayerJacobian],
    weights: Tensor,
    plain: Mapping[str, Tensor],
    layers: LayerCollection,
    computed: torch.dtype,
    by_itself: Container[str] = (),
) -> dict[str, str]:
    """Compare J^T w of each layer with a plain gradient of the same cotangent.

    An error is measured by the whole gradient, and then, where the rounding of the whole leaves that much to be seen, by what
    the examples contribute to the layer's own, of which only noise may be left in their sum.

    Args:
        jacobians: Shape (c, n, d_l); a layer without one is zero.
        weights: Shape (c, n).
        plain: The gradient from autograd, by parameter.
        layers: The parameters of each layer.
        computed: The dtype with the fewest digits that the model computes in.
        by_itself: The layers that are measured by their own gradient too.

    Returns:
        The layers that differ, with what may be the reason.

    Raises:
        NonFiniteError: The gradient has a NaN or an infinity; names a layer.
    """
    norms: dict[str, float] = {}
    errors: dict[str, float] = {}
    for layer_id, names in layers.parameter_names.items():  # a layer's memory is read again while it is near
        expected = [plain[name] for name in names]
        norms[layer_id] = errors[layer_id] = _norm(expected)
        if layer_id in jacobians:
            found = jacobians[layer_id]
            errors[layer_id] = _norm(found.residual(expected, weights.to(found.dtype)))
        if not (math.isfinite(norms[layer_id]) or all(all_finite(plain[name]) for name in names)):
            raise NonFiniteError(
                f"the gradient of layer '{layer_id}' has a NaN or an infinity, though the outputs are finite: the model "
                "masks one that the layer reads or returns. Mask it before the layer"
            )
    whole = math.hypot(*norms.values())
    noise = whole * NOISE * max((_eps(part.dtype) for part in plain.values()), default=0.0)
    differing: dict[str, str] = {}
    for layer_id, names in layers.parameter_names.items():
        dtypes, error = {plain[name].dtype for name in names}, errors[layer_id]
        called = error != norms[layer_id]  # by a call that reaches the outputs
        limits = (_tolerance(dtype, computed) if called else 100 * _eps(dtype) for dtype in dtypes)
        differs = not error <= whole * max(limits)
        if called and not differs and layer_id in by_itself and error > noise:
            limit = math.sqrt(max(map(_eps, dtypes)))
            own = norms[layer_id]  # most often enough, and there already
            differs = error > limit * own and error > limit * math.sqrt(float(jacobians[layer_id].squared_norm()))
        if differs:
            differing[layer_id] = (
                f"what its modules' calls show differs from a plain gradient of the model by {error / (whole or 1):.1e} "
                "of the whole gradient: its parameters are used outside the module's call (as in F.linear(h, module.weight)), "
                "a call was patched, or it was given the examples in another order"
            )
    return differing


def _norm(parts: Sequence[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(part)) for part in parts))


def differ(first: Tensor, second: Tensor, computed: torch.dtype | None = None) -> bool:
    """Whether two results of the same examples are apart by more than the rounding of the dtype they were computed in."""
    tolerance = _tolerance(first.dtype, computed or first.dtype)
    return first.shape != second.shape or bool(
        torch.linalg.vector_norm(first - second) > tolerance * torch.linalg.vector_norm(second)
    )


def _tolerance(dtype: torch.dtype, computed: torch.dtype) -> float:
    return max(1e-6, math.sqrt(max(_eps(dtype), _eps(computed))))  # parts of a model may compute in float32


def _eps(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)
