"""Selecting some of a model's layers: by name pattern, module type, or module."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from nngeo_core.layers.grouping import Group

__all__ = ["Choice", "select_groups"]

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


def _means(model: nn.Module, choice: Choice, group: Group) -> bool:
    paths = [source.path for source in group.sources]
    if isinstance(choice, str):
        return any(fnmatchcase(name, choice) for name in (*paths, *group.names))
    modules = [model.get_submodule(path) for path in paths]
    if isinstance(choice, type):
        return any(isinstance(module, choice) for module in modules)
    inside = set(choice.modules())
    return any(module in inside for module in modules)
