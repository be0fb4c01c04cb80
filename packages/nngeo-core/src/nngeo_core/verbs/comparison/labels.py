"""Names for the representations that are compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from nngeo_core.matrices.choice import Representation, chosen_representation

__all__ = ["labelled"]


def labelled(representations: Any) -> dict[str, Representation]:
    """Each representation by a label: its registered name, or that of its class; of a mapping from layers, what it says.

    Args:
        representations: A sequence of registered names, classes and mappings from layers to those; or a mapping from labels
            to any of them.

    Raises:
        TypeError: It is neither, or a label is no text.
        ValueError: There are none, or two have the same label.
        PluginError: A name is unknown; lists the known ones.

    Example:
        >>> from torch import nn
        >>> list(labelled(["diag", {nn.Linear: "kfac", None: "blockdiag"}]))
        ['diag', 'Linear: kfac, rest: blockdiag']
        >>> list(labelled({"mostly KFAC": {nn.Linear: "kfac", None: "blockdiag"}}))
        ['mostly KFAC']
    """
    if isinstance(representations, Mapping):
        found = dict(representations)
    elif isinstance(representations, Sequence) and not isinstance(representations, str):
        labels = [_label(choice) for choice in representations]
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        if repeated:
            raise ValueError(
                f"{', '.join(repeated)} is given twice; a mapping from labels to representations tells them apart"
            )
        found = dict(zip(labels, representations, strict=True))
    else:
        raise TypeError(
            f"representations is a list such as {_EXAMPLE}, or a mapping from labels; got {representations!r}"
        )
    if not found:
        raise ValueError(f"representations is empty; give at least one, such as {_EXAMPLE}")
    for label, choice in found.items():
        if not isinstance(label, str):
            raise TypeError(
                f"the keys of representations are labels; got {label!r}. A mapping from layers to representations is one "
                "representation: put it in a list"
            )
        for part in choice.values() if isinstance(choice, Mapping) else [choice]:
            chosen_representation(part)
    return found


_EXAMPLE = "['diag', 'kfac', {nn.BatchNorm2d: 'blockdiag', None: 'ekfac'}]"


def _label(choice: Any) -> str:
    if isinstance(choice, Mapping):
        return ", ".join(f"{_key(key)}: {_label(part)}" for key, part in choice.items())
    return choice if isinstance(choice, str) else str(getattr(choice, "name", choice))


def _key(key: Any) -> str:
    if key is None:
        return "rest"
    if isinstance(key, str):
        return key
    return key.__name__ if isinstance(key, type) else type(key).__name__
