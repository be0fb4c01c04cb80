"""Jacobians as a description and tensors, to be handed to another process, and made again there."""

from collections.abc import Iterator, Mapping
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerLayout
from nngeo_core.jacobians.scale_shift import ScaleShiftJacobian
from nngeo_core.jacobians.sum import SumJacobian

__all__ = ["described", "restored"]


def described(batch: JacobianBatch) -> tuple[Any, list[Tensor]]:
    """A batch as what JSON keeps, and its tensors; structures that are not built in are written out."""
    tensors: list[Tensor] = []
    layers = [[layer_id, *_described(jacobian, tensors)] for layer_id, jacobian in batch.layers.items()]
    directions = [batch.directions.start, batch.directions.stop]
    dtype = str(batch.dtype).removeprefix("torch.")
    return [layers, batch.n_examples, directions, batch.total_directions, dtype, batch.sign], tensors


def restored(description: Any, tensors: list[Tensor], device: torch.device) -> JacobianBatch:
    """The batch, from what `described` returned."""
    layers, n, directions, total, dtype, sign = description
    parts = iter(tensors)
    found: Mapping[str, LayerJacobian] = {layer_id: _restored(kind, facts, parts) for layer_id, kind, facts in layers}
    return JacobianBatch(found, n, slice(*directions), total, getattr(torch, dtype), device, sign)


def _described(jacobian: LayerJacobian, tensors: list[Tensor]) -> tuple[str, list[Any]]:
    """What makes the Jacobian again beside the tensors, which are appended."""
    if type(jacobian) is KroneckerJacobian:
        tensors += [jacobian.a, jacobian.g]
        return "kronecker", [*astuple(jacobian.layout), _masked(jacobian.mask, tensors)]
    if type(jacobian) is IndexJacobian:
        tensors += [jacobian.index, jacobian.g]
        return "index", [jacobian.rows, _masked(jacobian.mask, tensors)]
    if type(jacobian) is ScaleShiftJacobian:
        tensors += [jacobian.x_hat, jacobian.g]
        return "scale_shift", [jacobian.has_bias]
    if type(jacobian) is SumJacobian:
        return "sum", [_described(part, tensors) for part in jacobian.parts]
    tensors.append(jacobian.to_dense())
    return "dense", []


def _masked(mask: Tensor | None, tensors: list[Tensor]) -> bool:
    tensors += [] if mask is None else [mask]
    return mask is not None


def _restored(kind: str, facts: list[Any], tensors: Iterator[Tensor]) -> LayerJacobian:
    if kind == "sum":
        return SumJacobian(tuple(_restored(part, own, tensors) for part, own in facts))
    if kind == "dense":
        return DenseJacobian(next(tensors))
    first, g = next(tensors), next(tensors)
    if kind == "scale_shift":
        return ScaleShiftJacobian(first, g, *facts)
    *facts, has_mask = facts
    mask = next(tensors) if has_mask else None
    if kind == "index":
        return IndexJacobian(first, g, facts[0], mask)
    return KroneckerJacobian(first, g, KroneckerLayout(*facts), mask)
