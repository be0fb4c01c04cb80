"""Selecting some of a model's layers: by name pattern, module type, or module."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from nngeo_core.layers.grouping import Group, group_parameters
from nngeo_core.layers.rule import LayerRule
from nngeo_core.layers.sources import NO_RULES, find_sources

__all__ = ["Choice", "layers_meant", "select_groups"]

Choice: TypeAlias = "str | type[nn.Module] | nn.Module"
"""A pattern for module paths or parameter names (`"encoder.*"`), a type (`nn.Linear`), or a module with all inside it."""


def select_groups(model: nn.Module, groups: Iterable[Group], choices: Sequence[Choice]) -> tuple[Group, ...]:
    """The groups of parameters that one of the choices means.

    Raises:
        ValueError: If a choice means none of them.
    """
    kept = [(group, [k for k, choice in enumerate(choices) if _means(model, choice, group)]) for group in groups]
    used = {k for _, matches in kept for k in matches}
    idle = [choice for k, choice in enumerate(choices) if k not in used]
    if idle:
        raise ValueError(
            f"no layer of the model is meant by {idle}; expected patterns of module paths or parameter names, module types, or "
            "modules of the model"
        )
    return tuple(group for group, matches in kept if matches)


def layers_meant(
    model: nn.Module,
    parameter_names: Mapping[str, Sequence[str]],
    choices: Sequence[Choice],
    rules: Mapping[str, LayerRule] = NO_RULES,
) -> list[list[str]]:
    """The layers of a collection that each of the choices means, in the collection's order.

    Args:
        model: The model.
        parameter_names: The names of each layer's parameters, by layer id.
        choices: Patterns of module paths or parameter names, module types, or modules of the model.
        rules: Rules that were found before, as for `find_sources`.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> names = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
        >>> layers_meant(model, names, [nn.Linear, "2*", model[1]])
        [['0', '2'], ['2'], []]
    """
    held = {name for names in parameter_names.values() for name in names}
    group_of = {
        name: group for group in group_parameters(find_sources(model, held, rules), held) for name in group.names
    }
    return [
        [
            layer_id
            for layer_id, names in parameter_names.items()
            if any(_means(model, choice, group_of[name]) for name in names if name in group_of)
        ]
        for choice in choices
    ]


def _means(model: nn.Module, choice: Choice, group: Group) -> bool:
    paths = [source.path for source in group.sources]
    if isinstance(choice, str):
        return any(fnmatchcase(name, choice) for name in (*paths, *group.names))
    modules = [model.get_submodule(path) for path in paths]
    if isinstance(choice, type):
        return any(isinstance(module, choice) for module in modules)
    inside = set(choice.modules())
    return any(module in inside for module in modules)
