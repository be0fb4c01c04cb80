"""Some entries of the Kronecker approximation of F, from its formula and plain autograd: what `verify` compares KFAC with.

The entry between the weights from input a to output g and from a' to g' is A[a, a'] G[g, g']. Neither factor needs to know
how a layer reads its input: the layer run with one weight 1 and all others 0 returns, at each position, that weight's input.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only

from nngeo_core.conventions import result_dtype
from nngeo_core.sweep.examples import Batch, count_examples, select_examples
from nngeo_core.sweep.generator import Generator
from nngeo_core.verbs.sampled_entries import pulled_back

__all__ = ["sampled_kronecker"]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer with some of its parameters.

    Attributes:
        numbers: Which of all places those are, shape (m,).
        modules: The modules that use the layer's parameters, each with the local names of these.
        coordinates: For each of the m, the name of the parameter and the place in it.
    """

    numbers: Tensor
    modules: dict[nn.Module, dict[str, str]]
    coordinates: list[tuple[str, int]]


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module for one example, and zeros that were added to its output, where autograd finds g."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    zeros: Tensor


def sampled_kronecker(generator: Generator, batch: Batch, places: Tensor) -> Tensor:
    """Entries of G (x) A between some parameters, shape (k, k); zero between layers and groups.

    A = (1/n) sum_i sum_s a a^T and G = (1/n) sum_i (1/S) sum_s sum_c g g^T over the S positions of each example that
    count. NaN where the modules are not linear layers, convolutions or embeddings, which this formula knows.

    Args:
        generator: Knows model, likelihood and layers; its Jacobians are not used.
        batch: Some examples.
        places: Of the parameters in the flat vector, shape (k,).

    Source:
        Martens & Grosse (2015); Grosse & Martens (2016).
    """
    layers = _layers(generator, places)
    held = {module for layer in layers for module in layer.modules if _is_known(module)}
    examples = [select_examples(batch, slice(i, i + 1)) for i in range(count_examples(batch))]
    sums = [_Sums(layer) for layer in layers]
    for example in examples:
        calls: list[_Call] = []
        with torch.enable_grad(), _noting(held, calls):
            outputs = generator.outputs(example, 1)
        found, signs = pulled_back(generator, outputs, example, [call.zeros for call in calls])
        mask = generator.position_mask(outputs.detach(), example)
        for part in sums:
            pairs = [(call, g) for call, g in zip(calls, found, strict=True) if call.module in part.layer.modules]
            part.add(pairs, signs, mask)
    entries = torch.zeros(len(places), len(places), dtype=result_dtype(outputs.dtype), device=places.device)
    for part in sums:
        entries[part.layer.numbers[:, None], part.layer.numbers] = part.entries().to(entries)
    return entries


class _Sums:
    """What the examples show of one layer.

    Which output belongs to a weight shows where it answers. That may be silent for one example, so all are kept.
    """

    def __init__(self, layer: _Layer) -> None:
        self.layer = layer
        self.known = all(_is_known(module) for module in layer.modules)
        self._examples: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, calls: list[tuple[_Call, Tensor]], signs: Tensor, mask: Tensor | None) -> None:
        """Add an example: its calls, with the derivatives (c, *output) at what they returned."""
        self.known &= len(calls) > 0
        if not self.known:
            return
        answers = torch.cat([_answers(self.layer, call) for call, _ in calls], 1)
        gradients = torch.cat([_by_position(call.module, g) for call, g in calls], 1)
        counted = torch.cat([_counted(call) for call, _ in calls])
        if mask is not None and mask.numel() == len(counted):
            counted = counted & mask.flatten()
        self._examples.append((answers[:, counted], gradients[:, counted], signs))

    def entries(self) -> Tensor:
        """A[a, a'] G[g, g'] for the m parameters, shape (m, m)."""
        m, n = len(self.layer.coordinates), len(self._examples)
        if not self.known:
            return torch.full((m, m), torch.nan, device="cpu")
        output = torch.stack([answers.abs().sum(1) for answers, _, _ in self._examples]).sum(0).argmax(1)
        a_factor = g_factor = torch.zeros(m, m, device="cpu")
        for answers, gradients, signs in self._examples:
            a, g = answers[torch.arange(m, device="cpu"), :, output], gradients[:, :, output]
            a_factor = a_factor.to(a) + a @ a.T / n
            products = torch.einsum("csg,csh,c->gh", g, g, signs.to(g))  # c direction, s position; g, h outputs
            g_factor = g_factor.to(g) + products / (n * max(1, g.shape[1]))
        width = answers.shape[2] // getattr(next(iter(self.layer.modules)), "groups", 1)
        return a_factor * g_factor * (output[:, None] // width == output // width)


def _layers(generator: Generator, places: Tensor) -> list[_Layer]:
    """The layers of some places."""
    collection, named = generator.layer_collection, dict(generator.model.named_parameters())
    layers = []
    for layer_id, span in collection.slices().items():
        modules: dict[nn.Module, dict[str, str]] = {}
        coordinates, numbers, start = [], [], span.start
        for name in collection.parameter_names[layer_id]:
            for module in generator.model.modules():
                for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                    if parameter is named[name]:
                        modules.setdefault(module, {})[name] = local
            inside = ((places >= start) & (places < start + named[name].numel())).nonzero()[:, 0]
            coordinates += [(name, int(places[k]) - start) for k in inside]
            numbers.append(inside)
            start += named[name].numel()
        if coordinates:
            layers.append(_Layer(torch.cat(numbers), modules, coordinates))
    return layers


def _is_known(module: nn.Module) -> bool:
    """Whether it is linear in its parameters, its positions those of its output."""
    return isinstance(module, nn.Linear | nn.Embedding | _ConvNd) or type(module).__name__ == "Conv1D"


@contextmanager
def _noting(modules: Collection[nn.Module], calls: list[_Call]) -> Iterator[None]:
    """Note all calls of some modules that have a derivative."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        zeros = torch.zeros_like(output, requires_grad=True)
        arguments, keywords = tree_map_only(Tensor, lambda part: part.detach().clone(), (args, kwargs))
        calls.append(_Call(module, arguments, keywords, zeros))
        return output + zeros

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        yield


def _answers(layer: _Layer, call: _Call) -> Tensor:
    """What a module returns with one of its parameters' entries 1 and all others 0, for each: (m, s positions, outputs)."""
    held, answers = layer.modules[call.module], []
    for name, place in layer.coordinates:
        parameters = {local: torch.zeros_like(part) for local, part in call.module.named_parameters(recurse=False)}
        if name in held:
            parameters[held[name]].view(-1)[place] = 1
        with torch.no_grad():
            answers.append(functional_call(call.module, parameters, call.arguments, call.keywords))
    return _by_position(call.module, torch.stack(answers))


def _counted(call: _Call) -> Tensor:
    """Which positions of a call count, shape (s,): look-ups of an embedding's padding have no derivative."""
    if isinstance(call.module, nn.Embedding) and call.module.padding_idx is not None:
        index: Tensor = [*call.arguments, *call.keywords.values()][0]
        return index.flatten() != call.module.padding_idx
    positions = _by_position(call.module, call.zeros.unsqueeze(0)).shape[1]
    return torch.ones(positions, dtype=torch.bool, device=call.zeros.device)


def _by_position(module: nn.Module, tensor: Tensor) -> Tensor:
    """Several tensors like what a module returned for one example, shape (m, s positions, outputs)."""
    return (tensor.movedim(2, -1) if isinstance(module, _ConvNd) else tensor).flatten(1, -2)
