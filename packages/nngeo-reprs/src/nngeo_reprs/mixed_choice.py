"""Which layers of a model get which representation, in a matrix that is made of several."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nngeo_core.errors import LayerCollectionMismatchError
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.selection import layers_meant
from nngeo_core.matrices.choice import chosen_kind
from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import registry
from nngeo_reprs.block_diag import PMatBlockDiag
from nngeo_reprs.diag import PMatDiag
from nngeo_reprs.kfac import PMatKFAC

__all__ = ["SMALL", "Share", "automatic", "shares"]

SMALL = 512
"""Parameters of a layer up to which its exact block is kept: 2^18 numbers, 1 MiB in float32."""


@dataclass(frozen=True)
class Share:
    """Some layers, and the one representation that they get together.

    Attributes:
        layers: Their ids.
        kind: The representation; None for what suits each of them.
    """

    layers: tuple[str, ...]
    kind: type[PMat] | None = None


def shares(model: nn.Module, layers: LayerCollection, choices: Any = None) -> tuple[Share, ...]:
    """What each key of a mapping gets of the layers, one share for each key that gets any.

    Args:
        model: The model, in which module types and patterns are looked up.
        layers: What the matrix is about.
        choices: A mapping from patterns of module paths or parameter names, module types, or modules, to names or classes
            of representations, or `"auto"`; the key None stands for the rest. None for all layers automatically.

    Raises:
        TypeError: It is no mapping, or a key or value is of the wrong type.
        ValueError: The mapping is empty, or a key gets no layer.
        LayerCollectionMismatchError: Some layers are meant by no key.
    """
    if choices is None:
        return (Share(tuple(layers)),)
    if not isinstance(choices, Mapping) or not choices:
        raise (TypeError if not isinstance(choices, Mapping) else ValueError)(
            f"a mixed representation is asked for by a mapping such as {_EXAMPLE}; got {choices!r}"
        )
    keys = [_checked_key(key) for key in choices if key is not None]
    taken = _first_come(keys, layers_meant(model, layers.parameter_names, keys, layers.rules))
    rest = tuple(layer_id for layer_id in layers if not any(layer_id in found for found in taken))
    if rest and None not in choices:
        raise LayerCollectionMismatchError(
            f"no key of the mapping means the layers {list(rest)}; add the key None for the rest, such as None: 'auto'"
        )
    found = [Share(held, _kind(choices[key])) for key, held in zip(keys, taken, strict=True)]
    return (*found, Share(rest, _kind(choices[None]))) if rest else tuple(found)


_EXAMPLE = "{nn.Linear: 'kfac', 'head.*': 'dense', None: 'blockdiag'}"


def _checked_key(key: Any) -> Any:
    if isinstance(key, str | nn.Module) or (isinstance(key, type) and issubclass(key, nn.Module)):
        return key
    raise TypeError(
        "the keys of a mixed representation are patterns of module paths or parameter names, module types, modules, or None "
        f"for the rest; got {key!r}"
    )


def _kind(choice: object) -> type[PMat] | None:
    """A class, or None for what each layer suits: a part is not made of parts."""
    kind = chosen_kind(choice)
    return None if kind is registry.representation("mixed") else kind


def _first_come(keys: Sequence[object], meant: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The layers of each key, each layer with the first key that means it."""
    taken: list[tuple[str, ...]] = []
    for key, found in zip(keys, meant, strict=True):
        left = tuple(layer_id for layer_id in found if not any(layer_id in others for others in taken))
        if not left:
            reason = f"all of its layers, {list(found)}, go to keys before it" if found else "it means no layer"
            raise ValueError(f"the key {key!r} gets no layer of the model: {reason}; the first key that fits counts")
        taken.append(left)
    return taken


def automatic(layers: LayerCollection, share: Share, without_factors: Collection[str] = ()) -> list[Share]:
    """One share for each kind that suits some of the layers, of a share that leaves it open.

    Kronecker factors where the layer has them, exact blocks for layers of at most `SMALL` parameters, else the diagonal.

    Args:
        layers: What the whole matrix is about.
        share: Some of its layers.
        without_factors: Layers that turned out to have no Kronecker factors, whatever their type promises.
    """
    if share.kind is not None:
        return [share]
    kinds: dict[type[PMat], list[str]] = {PMatKFAC: [], PMatBlockDiag: [], PMatDiag: []}
    for layer_id in share.layers:
        structure = layers.structure(layer_id)
        if layer_id not in without_factors and structure is not None and structure.layout is not None:
            kinds[PMatKFAC].append(layer_id)
        else:
            kinds[PMatBlockDiag if layers[layer_id].numel() <= SMALL else PMatDiag].append(layer_id)
    return [Share(tuple(held), kind) for kind, held in kinds.items() if held]
