"""J v of one batch: forward mode where the model allows it, two reverse passes where it does not."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import NNGeoError, UnsupportedLayerError
from nngeo_core.sweep.examples import Batch
from nngeo_generators.graph import coarsest
from nngeo_generators.network import Network

__all__ = ["Linearization", "Linearizer", "Sound", "Way", "all_ways", "differentiable_attention", "pull_back_one"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Linearization:
    """A batch's outputs, how they change along v, and that change pulled back.

    Attributes:
        outputs: With their graph.
        change: J v, of the outputs' shape.
        pulled: J^T L J v, one tensor for each parameter, summed over the examples; empty where it was not asked for.
    """

    outputs: Tensor
    change: Tensor
    pulled: list[Tensor]


class Linearizer:
    """Linearizes one batch after another along one vector.

    Each result is checked, at no cost, by v . (J^T L J v) = (J v) . L (J v), whose sides come from the backward and from
    the forward pass: forward mode ignores a model's inner `no_grad` and the constant row of an embedding's padding. A way
    that fails, or that the model refuses, is left for the next one for good, and the log says so.

    Args:
        model: The user's model.
        parameters: Leaves that stand for its parameters, in flat order.
        v: The vector, shape (d,).
        ways: What to try, in order; shortened in place, so that later products start with what worked.
        sound: What was compared with a random pull-back before; grows in place.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        v: Tensor,
        ways: "list[Way]",
        sound: "Sound | None" = None,
    ) -> None:
        self.parameters = parameters
        self.tangents = _split(v, parameters)
        _hold_padding(model, dict(zip(parameters, self.tangents, strict=True)))
        self._ways = ways
        self._sound = set() if sound is None else sound
        self._rounding = max(torch.finfo(leaf.dtype).eps for leaf in parameters.values())

    def linearize(
        self, network: Network, batch: Batch, metric: "Metric | None", counted: "Metric | None" = None
    ) -> Linearization:
        """J v and J^T L J v of one batch.

        Args:
            network: Maps the batch to its outputs.
            batch: Some examples.
            metric: L u from the outputs and u; None for J v alone, which keeps no graph, and so is checked the first time only.
            counted: u with zeros for the outputs whose derivatives are not asked for; None if all are.

        Raises:
            NNGeoError: Forward and reverse derivatives of this model differ, or do not exist, in every way that was tried.
            Exception: Whatever the model raises in a plain forward pass.
        """
        reasons: list[str] = []
        while True:
            way = self._ways[0]
            try:
                return self._linearize(way, network, batch, metric, counted)
            except torch.OutOfMemoryError:
                raise
            except Exception as refusal:  # whatever a model raises that meets dual numbers
                reason, error = str(refusal).partition("\n")[0], refusal
            network(batch)  # raises what the model raises by itself
            reasons.append(f"by {_name(way)}, {reason}")
            if len(self._ways) == 1:
                raise NNGeoError(f"no way to J v is exact for this model: {'; '.join(reasons)}") from error
            self._ways.pop(0)
            log.info("products go on by %s: %s", _name(self._ways[0]), reason)

    def _linearize(
        self, way: "Way", network: Network, batch: Batch, metric: "Metric | None", counted: "Metric | None"
    ) -> Linearization:
        with differentiable_attention(), torch.set_grad_enabled(metric is not None):
            outputs, change = way(network, self.parameters, self.tangents, batch)
        change = change.detach()
        changes, kind = bool(change.any()), (way, metric is None)
        if kind not in self._sound or not changes:
            with torch.enable_grad():
                graph = network.with_parameters(self.parameters, batch) if metric is None else outputs
            self._check_random(graph, change, counted)
        if not changes:
            return Linearization(outputs.detach(), change, [torch.zeros_like(v) for v in self.tangents])
        self._sound.add(kind)
        if metric is None:
            return Linearization(outputs.detach(), change, [])
        image = metric(outputs.detach(), change)
        pulled = pull_back_one(outputs, self.parameters, image)
        self._check(outputs, pulled, (image * change).sum())
        return Linearization(outputs.detach(), change, pulled)

    def _check_random(self, outputs: Tensor, change: Tensor, counted: "Metric | None") -> None:
        """Raise unless r . (J v) = v . (J^T r) for a random r: the free check cannot see what L J v does not reach."""
        r = torch.randn(
            outputs.shape, generator=torch.Generator().manual_seed(0), dtype=outputs.dtype, device="cpu"
        ).to(outputs.device)
        r = r if counted is None else counted(outputs.detach(), r)
        pulled = pull_back_one(outputs, self.parameters, r, keep_graph=True)
        difference = (_dot(self.tangents, pulled) - _dot([r], [change])).abs()
        scale = _norm(self.tangents) * _norm(pulled) + _norm([r]) * _norm([change])
        if self._exceeds(difference, scale, outputs):
            raise NNGeoError("forward-mode and reverse-mode derivatives of this model differ, r.(J v) and v.(J^T r)")

    def _check(self, outputs: Tensor, pulled: Sequence[Tensor], form: Tensor) -> None:
        """Raise unless v . (J^T L J v) is (J v) . L (J v), where both are finite."""
        from_reverse = _dot(self.tangents, pulled)
        difference = (from_reverse - form).abs()
        if not (from_reverse.isfinite() and form.isfinite()) or not self._exceeds(difference, form.abs(), outputs):
            return
        if self._exceeds(difference, form.abs() + _norm(self.tangents) * _norm(pulled), outputs):
            raise NNGeoError(
                f"forward-mode and reverse-mode derivatives of this model differ, v.(F v) = {from_reverse.item():.6g} and "
                f"(J v).L(J v) = {form.item():.6g} for a batch; an inner no_grad or a custom autograd function does that"
            )

    def _exceeds(self, difference: Tensor, scale: Tensor, outputs: Tensor) -> bool:
        """Whether a difference is more than rounding, be it that of the coarsest dtype that the outputs' graph computes in."""
        relative = float(difference / scale) if scale > 0 else float(difference > 0)
        return relative**2 > self._rounding and relative**2 > torch.finfo(coarsest(outputs)).eps


def pull_back_one(
    outputs: Tensor, parameters: Mapping[str, Tensor], cotangent: Tensor, keep_graph: bool | None = None
) -> list[Tensor]:
    """J^T cotangent, parameter by parameter, through the graph of the outputs.

    Raises:
        UnsupportedLayerError: Autograd refuses the graph.
    """
    wanted = list(parameters.values())
    if not outputs.requires_grad:
        return [torch.zeros_like(parameter, requires_grad=False) for parameter in wanted]
    cotangent = cotangent.to(outputs.dtype)
    try:
        return list(
            torch.autograd.grad(outputs, wanted, cotangent, keep_graph, allow_unused=True, materialize_grads=True)
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnsupportedLayerError(f"autograd cannot differentiate this model: {error}") from error


Metric = Callable[[Tensor, Tensor], Tensor]
"""L u from the outputs and u."""

Way = Callable[[Network, Mapping[str, Tensor], Sequence[Tensor], Batch], tuple[Tensor, Tensor]]

Sound = set[tuple[Way, bool]]
"""Ways that have shown to be exact, each with whether it then kept no graph."""


def _forward_mode(
    network: Network, parameters: Mapping[str, Tensor], tangents: Sequence[Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    """Outputs with their graph and J v, by one pass with dual numbers."""
    _load_forward_mode()
    with forward_ad.dual_level():
        pairs = zip(parameters.items(), tangents, strict=True)
        duals = {name: forward_ad.make_dual(leaf, tangent) for (name, leaf), tangent in pairs}
        outputs, change = forward_ad.unpack_dual(network.with_parameters(duals, batch))
    return outputs, torch.zeros_like(outputs) if change is None else change


def _forward_mode_without_mkldnn(
    network: Network, parameters: Mapping[str, Tensor], tangents: Sequence[Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    """The same with torch's own kernels, which have forward formulas where mkldnn's (recurrent cells) have none."""
    enabled = torch._C._get_mkldnn_enabled()
    try:  # `torch.backends.mkldnn.flags` sets an option for Intel GPUs too, and warns where there is none
        torch._C._set_mkldnn_enabled(False)
        return _forward_mode(network, parameters, tangents, batch)
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@torch.enable_grad()
def _two_reverse_passes(
    network: Network, parameters: Mapping[str, Tensor], tangents: Sequence[Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    """J v as the derivative of v . (J^T u) with respect to u."""
    outputs = network.with_parameters(parameters, batch)
    if not outputs.requires_grad:
        return outputs, torch.zeros_like(outputs)
    u = torch.zeros_like(outputs, requires_grad=True)
    wanted = list(parameters.values())
    pulled = torch.autograd.grad(outputs, wanted, u, create_graph=True, allow_unused=True)
    terms = [(p * v).sum() for p, v in zip(pulled, tangents, strict=True) if p is not None and p.requires_grad]
    if not terms:
        return outputs, torch.zeros_like(outputs)
    (change,) = torch.autograd.grad(torch.stack(terms).sum(), u, retain_graph=True)
    return outputs, change


def _name(way: Way) -> str:
    return way.__name__.strip("_").replace("_", " ")


def all_ways() -> list[Way]:
    """What to try on a model of which nothing is known yet."""
    return [_forward_mode, _forward_mode_without_mkldnn, _two_reverse_passes]


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Attention by plain products: the fused kernels and the fast path have no forward or second derivatives."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _split(v: Tensor, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """A flat vector (d,) as one tensor for each parameter, each with memory of its own as dual numbers want it."""
    parts = v.split([leaf.numel() for leaf in parameters.values()])
    return [part.view(leaf.shape).to(leaf, copy=True) for part, leaf in zip(parts, parameters.values(), strict=True)]


def _hold_padding(model: nn.Module, tangents: Mapping[str, Tensor]) -> None:
    """Zero the tangents of padding rows, which are constant, in tables that no other module shares."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            name = f"{path}.weight" if path else "weight"
            owners = (p for m in model.modules() for p in m.parameters(recurse=False))
            if name in tangents and sum(owner is module.weight for owner in owners) == 1:
                tangents[name][module.padding_idx] = 0


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.dot(_precise(a), _precise(b)) for a, b in zip(first, second, strict=True)]).sum()


def _norm(parts: Sequence[Tensor]) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(_precise(part)) for part in parts])
    return norms.square().sum().sqrt()


def _precise(part: Tensor) -> Tensor:
    """Flat, and at least in float32: squares of numbers in float16 overflow at 65504."""
    return part.flatten().to(result_dtype(part.dtype))


@cache
def _load_forward_mode() -> None:
    """Have torch load its forward-mode formulas, which warns of torch's own use of a deprecated function."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1, device="cpu"), torch.zeros(1, device="cpu"))
