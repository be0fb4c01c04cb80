"""What a user may call a representation: a name, a class, or one for each part of a model."""

from collections.abc import Mapping
from inspect import isabstract
from typing import Any, TypeAlias

from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import registry

__all__ = ["Representation", "chosen_kind", "chosen_representation"]

Representation: TypeAlias = str | type[PMat] | Mapping[Any, str | type[PMat]]
"""A registered name, a class, `"auto"`, or a mapping from layers to those."""


def chosen_representation(choice: object) -> tuple[type[PMat], Any]:
    """The class, and what is asked of it by layer, which its `prepare` takes: None unless the choice is a mapping.

    Args:
        choice: A registered name, a class, `"auto"`, or a mapping from layers to those.

    Raises:
        PluginError: The name is unknown.
        TypeError: It is something else.

    Example:
        >>> chosen_representation({"head": "dense", None: "diag"})
        (<class 'nngeo_reprs.mixed.PMatMixed'>, {'head': 'dense', None: 'diag'})
    """
    if isinstance(choice, Mapping):
        return chosen_kind("mixed"), choice
    return chosen_kind(choice), None


def chosen_kind(choice: object) -> type[PMat]:
    """The class that a registered name stands for, or the class itself; `"auto"` is the mixed one.

    Raises:
        PluginError: The name is unknown.
        TypeError: It is something else, or a class that does not say how it is computed.
    """
    if isinstance(choice, str):
        found: type[PMat] = registry.representation("mixed" if choice == "auto" else choice, kind="pmat")
        return found
    if isinstance(choice, type) and issubclass(choice, PMat) and not isabstract(choice):
        return choice
    raise TypeError(
        "representation is a name, a concrete PMat class, a mapping from layers to those, or a list of those; got "
        f"{choice!r}. Known names: auto, {', '.join(registry.names('representations'))}"
    )
