"""Grouping: a layer is the set of parameters that the same modules use."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from torch import nn

from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.overview import Origin
from nngeo_core.layers.sources import Source
from nngeo_core.plugins import registry

__all__ = ["Group", "Unsupported", "explain_unsupported", "find_unsupported", "group_parameters"]

Unsupported = tuple[str, str, tuple[str, ...]]
"""Path and type of a module without a layer rule, and the names of the parameters that lack a derivative for it."""


@dataclass(frozen=True)
class Group:
    """Parameters with the same sources: tied weights are one group with two sources.

    Attributes:
        sources: The modules that use the parameters, in the order of the model.
        names: First names of the parameters in `model.named_parameters()`, in the first source's order.
    """

    sources: tuple[Source, ...]
    names: tuple[str, ...]

    def unsupported(self, structured_only: bool = False) -> Source | None:
        """The first source without a rule, or without a structured one: one is enough to leave the whole group out."""
        for source in self.sources:
            if source.rule is None or (structured_only and not source.rule.structured):
                return source
        return None

    def origin(self, model: nn.Module) -> Origin:
        """Module type, rules and structure, for print; sources of different structures have none together."""
        modules = [model.get_submodule(source.path) for source in self.sources]
        pairs = zip(self.sources, modules, strict=True)
        structures = {source.structure(module, self.names) for source, module in pairs}
        rules = " + ".join(source.rule.name for source in self.sources if source.rule is not None)
        common = None if None in structures else structures.pop() if len(structures) == 1 else Structure()
        return Origin(type(modules[0]).__name__, rules, common)


def group_parameters(sources: Iterable[Source], names: Container[str] | None = None) -> tuple[Group, ...]:
    """The parameters of all sources, each once, grouped by the set of sources that use them.

    Groups come in the order of their first source, and the parameters of a group in that source's order.

    Args:
        sources: The modules that use parameters.
        names: The parameters to take; None takes all.

    Example:
        >>> embedding = Source("embedding", None, {"weight": "embedding.weight"})
        >>> head = Source("head", None, {"weight": "embedding.weight", "bias": "head.bias"})
        >>> [group.names for group in group_parameters([embedding, head])]
        [('embedding.weight',), ('head.bias',)]
    """
    users: dict[str, list[Source]] = {}
    for source in sources:
        for name in dict.fromkeys(source.names.values()):
            if names is None or name in names:
                users.setdefault(name, []).append(source)
    groups: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name, using in users.items():
        groups.setdefault(tuple((source.path, *source.names) for source in using), []).append(name)
    return tuple(Group(tuple(users[names[0]]), tuple(names)) for names in groups.values())


def find_unsupported(
    model: nn.Module, groups: Iterable[Group], structured_only: bool = False
) -> tuple[Unsupported, ...]:
    """The parameters without a derivative, each under the first module without a (structured) rule that uses it."""
    lacking: dict[str, tuple[str, ...]] = {}
    for group in groups:
        source = group.unsupported(structured_only)
        if source is not None:
            lacking[source.path] = (*lacking.get(source.path, ()), *group.names)
    return tuple((path, type(model.get_submodule(path)).__name__, names) for path, names in lacking.items())


def explain_unsupported(unsupported: Iterable[Unsupported]) -> str:
    """The message of an error about parameters without a derivative, with the ways out and the plugins that failed."""
    modules = "; ".join(f"'{path}' ({kind}) with {', '.join(names)}" for path, kind, names in unsupported)
    return (
        f"no layer rule for {modules}. The built-in rules come with nngeo-generators; a plugin adds others through its "
        "nngeo_layer_rules hook; LayerCollection.from_model(model, ignore_unsupported_layers=True) leaves these "
        f"parameters out. {registry.problems()}".rstrip()
    )
