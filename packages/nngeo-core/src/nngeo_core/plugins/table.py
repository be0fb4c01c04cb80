"""A table of keys, each standing for the object that a plugin provides, with conflicts kept apart from absence."""

from collections.abc import Hashable
from difflib import get_close_matches
from typing import Generic, TypeVar

from nngeo_core.errors import PluginError
from nngeo_core.plugins.loader import Plugin

__all__ = ["Table", "label"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Table(Generic[K, V]):
    """Keys, what they stand for, and which plugins say so.

    A key that two plugins claim with different objects stands for neither until one of them is removed, so that a
    look-up never depends on the order in which plugins came. The same object claimed twice is no conflict.

    Args:
        noun: What the values are, for messages.

    Example:
        >>> from nngeo_core.plugins import Plugin, Table
        >>> table = Table[str, int]("answer")
        >>> table.add("ultimate", 42, Plugin("deep-thought", "answers", "1.0"))
        >>> table.find("ultimate")
        42
        >>> table.unknown("ultimat")
        "unknown answer 'ultimat'; known: 'ultimate'. Did you mean 'ultimate'?"
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._claims: dict[K, tuple[tuple[V, Plugin], ...]] = {}

    def add(self, key: K, value: V, owner: Plugin) -> None:
        """Record that `owner` provides `value` for `key`; ask `conflict` whether that left the key usable."""
        self._claims[key] = (*self._claims.get(key, ()), (value, owner))

    def remove(self, owner: Plugin) -> None:
        """Forget everything that `owner` provides."""
        kept = {key: tuple(claim for claim in claims if claim[1] != owner) for key, claims in self._claims.items()}
        self._claims = {key: claims for key, claims in kept.items() if claims}

    def find(self, key: K) -> V | None:
        """The value for `key`, None if there is none; `PluginError` if plugins conflict over it."""
        conflict = self.conflict(key)
        if conflict:
            raise PluginError(conflict)
        claims = self._claims.get(key)
        return claims[0][0] if claims else None

    def conflict(self, key: K) -> str:
        """Who conflicts over `key` and how to settle it; empty if nobody does."""
        claims = self._claims.get(key, ())
        if all(value is claims[0][0] for value, _ in claims):
            return ""
        owners = " and ".join(sorted(str(owner) for _, owner in claims))
        return (
            f"{self.noun} {_quoted(key)} is provided by {owners}, with different objects: block one by its name in "
            "NNGEO_DISABLED_PLUGINS, or take it out with nngeo_core.plugins.registry.unregister"
        )

    def keys(self, owner: Plugin | None = None) -> list[K]:
        """The keys, or those that `owner` provides, sorted by name."""
        claims = list(self._claims.items())
        mine = [key for key, values in claims if owner is None or any(owner == other for _, other in values)]
        return sorted(mine, key=label)

    def unknown(self, key: K) -> str:
        """The message for a key that is not there: the known ones, and the closest of them."""
        known = [_quoted(other) for other in self.keys()]
        close = get_close_matches(_quoted(key), known, n=1)
        suggestion = f" Did you mean {close[0]}?" if close else ""
        return f"unknown {self.noun} {_quoted(key)}; known: {', '.join(known) or 'none'}.{suggestion}"


def label(key: object) -> str:
    """How a key is listed: a type by its full name, anything else as it is."""
    return f"{key.__module__}.{key.__qualname__}" if isinstance(key, type) else str(key)


def _quoted(key: object) -> str:
    return label(key) if isinstance(key, type) else repr(key)
