"""Sources: which modules use which parameters, and the rule that differentiates each of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import Layer, ParameterLayer
from nngeo_core.layers.rule import LayerRule
from nngeo_core.plugins import registry

__all__ = ["Source", "find_rule", "find_sources", "find_sources_of"]

NO_RULES: Mapping[str, LayerRule] = MappingProxyType({})


@dataclass(frozen=True)
class Source:
    """One module that uses parameters of its own, or one of the parts that its rule differentiates each by itself.

    Attributes:
        path: The module's path in the model, the first one where it is shared.
        rule: What differentiates the module, or None if nothing does.
        names: Local parameter name -> its (first) name in `model.named_parameters()`, in the rule's order. A tied
            parameter appears in several sources under one and the same first name.
        whole: Whether the rule takes all of the module's parameters together.
    """

    path: str
    rule: LayerRule | None
    names: dict[str, str]
    whole: bool = True

    def record(self, module: nn.Module, names: tuple[str, ...]) -> Layer:
        """The record of a layer of the named ones of this module's parameters: the rule's own if it holds all."""
        if self.rule is None:
            raise UnsupportedLayerError(f"no layer rule describes module '{self.path}' ({type(module).__name__})")
        layer = self.rule.describe(module)
        shapes = layer.parameter_shapes()
        local_names = {full: local for local, full in reversed(self.names.items())}
        held = tuple((local_names[name], shapes[local_names[name]]) for name in names)
        return layer if held == tuple(shapes.items()) else ParameterLayer(held)

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure | None:
        """What the rule says of the Jacobian of the named parameters of this module, if anything."""
        local_names = {full: local for local, full in reversed(self.names.items())}
        return None if self.rule is None else self.rule.structure(module, tuple(local_names[name] for name in names))


def find_rule(module: nn.Module) -> LayerRule | None:
    """The rule that is exact for a module, or None if there is none.

    A rule registered for the module's exact type applies; one of a base class only if the subclass does not override
    `forward`. A parametrized module, one whose `forward` was replaced, and one with parameters that the rule does not
    know (old-style weight norm keeps the type `Linear`) are left to the plugins' `nngeo_resolve_rule`, the last resort.

    Raises:
        UnsupportedLayerError: If the rule refuses the module's configuration.

    Example:
        >>> find_rule(nn.ReLU()) is None
        True
    """
    rule = _select_rule(module)
    if rule is not None:
        rule.check(module)
    return rule


def find_sources(
    model: nn.Module, names: Collection[str] | None = None, rules: Mapping[str, LayerRule] = NO_RULES
) -> tuple[Source, ...]:
    """Every module that uses parameters of its own, in the order of `model.named_modules()`.

    A module shared by several parents appears once. A module whose rule claims its subtree stands for its children too.

    Args:
        model: The model.
        names: Names in `model.named_parameters()`; modules that use none of them are left out, and not checked.
        rules: Rules that were found before, by module path; where one serves its module still, nothing is looked up.

    Raises:
        UnsupportedLayerError: If a rule refuses its module's configuration.
        ValueError: If a lazy module has not seen its first batch yet.

    Example:
        >>> find_sources(nn.Sequential(nn.ReLU(), nn.Flatten()))
        ()
    """
    first_names = _first_names(model)
    sources: list[Source] = []
    claimed: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in claimed or next(module.parameters(), None) is None:
            continue
        rule = _select_rule(module, rules.get(path))
        for source in _sources(path, module, rule, first_names):
            if any(names is None or name in names for name in source.names.values()):
                _check(source, module)
                sources.append(source)
        if rule is not None and rule.claims_subtree:
            claimed.update(module.modules())
    return tuple(sources)


def find_sources_of(model: nn.Module, module: nn.Module) -> tuple[Source, ...]:
    """The sources that one module is, one for each of its parts; the rest of the model is not looked at.

    Raises:
        UnsupportedLayerError: If the module's rule refuses its configuration.
        ValueError: If the module does not belong to the model, has no parameters of its own, or is a lazy one.
    """
    path = next((path for path, other in model.named_modules() if other is module), None)
    if path is None:
        raise ValueError(f"this {type(module).__name__} is not a module of the model: pass one of model.modules()")
    sources = _sources(path, module, _select_rule(module), _first_names(model))
    if not sources:
        raise ValueError(f"module '{path}' ({type(module).__name__}) has no parameters of its own: pass its children")
    for source in sources:
        _check(source, module)
    return sources


def _sources(
    path: str, module: nn.Module, rule: LayerRule | None, first_names: dict[nn.Parameter, str]
) -> tuple[Source, ...]:
    """One source for each part of the module that has parameters."""
    own = _own_parameters(module, rule)
    parts = (tuple(own),) if rule is None else rule.parts(module)
    held = [{name: first_names[own[name]] for name in part if name in own} for part in parts]
    return tuple(Source(path, rule, names, whole=len(parts) == 1) for names in held if names)


def _check(source: Source, module: nn.Module) -> None:
    if source.rule is not None:
        try:
            source.rule.check(module)
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(f"module '{source.path}' ({type(module).__name__}): {error}") from error


def _select_rule(module: nn.Module, held: LayerRule | None = None) -> LayerRule | None:
    if held is not None and _serves(held, module) and _knows_parameters(held, module):
        return held
    for find in (_rule_of_type, registry.resolve_rule):
        rule = find(module)
        if rule is not None and _knows_parameters(rule, module):
            return rule
    return None


def _rule_of_type(module: nn.Module) -> LayerRule | None:
    if _is_changed(module):
        return None
    for base in type(module).__mro__:
        rule: LayerRule | None = registry.rule(base)
        if rule is not None:
            return rule if getattr(base, "forward", None) is type(module).forward else None
    return None


def _serves(rule: LayerRule, module: nn.Module) -> bool:
    """Whether the tables would name a rule like this one for the module still."""
    return type(module) in rule.module_types and not _is_changed(module)


def _is_changed(module: nn.Module) -> bool:
    """Whether the module computes something else than its type says."""
    return "forward" in vars(module) or parametrize.is_parametrized(module)


def _knows_parameters(rule: LayerRule, module: nn.Module) -> bool:
    own = _own_parameters(module, rule)
    return bool(own) and own.keys() <= rule.describe(module).parameter_shapes().keys()


def _own_parameters(module: nn.Module, rule: LayerRule | None) -> dict[str, nn.Parameter]:
    subtree = rule is not None and rule.claims_subtree
    return dict(module.named_parameters(recurse=subtree, remove_duplicate=False))


def _first_names(model: nn.Module) -> dict[nn.Parameter, str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    lazy = [name for parameter, name in names.items() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(f"parameters without a shape yet: {', '.join(lazy)}; call the model on one batch first")
    return names
