"""A table of keys, each standing for the object that a plugin provides, with conflicts kept apart from absence."""

from collections.abc import Hashable
from dataclasses import dataclass
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
    look-up never depends on the order in which plugins came. The same object claimed twice is no conflict, and neither is
    a claim that says whose it overrides.

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
        self._claims: dict[K, tuple[_Claim[V], ...]] = {}
        self._found: dict[K, V | None] = {}

    def add(self, key: K, value: V, owner: Plugin, overrides: tuple[str, ...] = ()) -> None:
        """Record that `owner` provides `value` for `key`; ask `conflict` whether that left the key usable.

        Args:
            key: The key.
            value: What it stands for.
            owner: Who says so.
            overrides: Names of plugins or distributions whose claims to the key yield to this one.
        """
        self._claims[key] = (*self._claims.get(key, ()), _Claim(value, owner, overrides))
        self._found.clear()

    def remove(self, owner: Plugin) -> None:
        """Forget everything that `owner` provides."""
        kept = {key: tuple(claim for claim in claims if claim.owner != owner) for key, claims in self._claims.items()}
        self._claims = {key: claims for key, claims in kept.items() if claims}
        self._found.clear()

    def find(self, key: K) -> V | None:
        """The value for `key`, None if there is none; `PluginError` if plugins conflict over it."""
        if key not in self._found:
            conflict = self.conflict(key)
            if conflict:
                raise PluginError(conflict)
            standing = self._standing(key)
            self._found[key] = standing[0].value if standing else None
        return self._found[key]

    def conflict(self, key: K) -> str:
        """Who conflicts over `key` and how to settle it; empty if nobody does."""
        claims = self._standing(key)
        if all(claim.value is claims[0].value for claim in claims):
            return ""
        owners = " and ".join(sorted(str(claim.owner) for claim in claims))
        return (
            f"{self.noun} {_quoted(key)} is provided by {owners}, with different objects: block one by its name in "
            "NNGEO_DISABLED_PLUGINS, take it out with nngeo_core.plugins.registry.unregister, or let its object say "
            "`overrides = (...)` with the other's name"
        )

    def overridden(self, owner: Plugin) -> list[str]:
        """Which keys of `owner` stand for another plugin's object, by its wish, one message for each."""
        return [
            f"{self.noun} {_quoted(key)} overridden by {claim.owner}"
            for key in self.keys(owner)
            for claim in self._standing(key)
            if all(other.owner != owner for other in self._standing(key))
        ]

    def _standing(self, key: K) -> tuple["_Claim[V]", ...]:
        """The claims that no other one beats; all of them if they beat one another in a circle."""
        claims = self._claims.get(key, ())
        return tuple(claim for claim in claims if not any(other.beats(claim) for other in claims)) or claims

    def keys(self, owner: Plugin | None = None) -> list[K]:
        """The keys, or those that `owner` provides, sorted by name."""
        claims = list(self._claims.items())
        mine = [key for key, values in claims if owner is None or any(owner == claim.owner for claim in values)]
        return sorted(mine, key=label)

    def unknown(self, key: K) -> str:
        """The message for a key that is not there: the known ones, and the closest of them."""
        known = [_quoted(other) for other in self.keys()]
        close = get_close_matches(_quoted(key), known, n=1)
        suggestion = f" Did you mean {close[0]}?" if close else ""
        return f"unknown {self.noun} {_quoted(key)}; known: {', '.join(known) or 'none'}.{suggestion}"


@dataclass(frozen=True)
class _Claim(Generic[V]):
    """What one plugin provides for a key, and whose claims yield to it."""

    value: V
    owner: Plugin
    overrides: tuple[str, ...]

    def beats(self, other: "_Claim[V]") -> bool:
        """Whether the other one yields; of two that override each other neither does."""
        mutual = self.owner.is_among(other.overrides)
        return self.owner != other.owner and other.owner.is_among(self.overrides) and not mutual


def label(key: object) -> str:
    """How a key is listed: a type by its full name, anything else as it is."""
    return f"{key.__module__}.{key.__qualname__}" if isinstance(key, type) else str(key)


def _quoted(key: object) -> str:
    return label(key) if isinstance(key, type) else repr(key)
