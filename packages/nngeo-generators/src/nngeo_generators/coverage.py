"""Coverage: how a generator obtains the derivative of each layer, after what the first batch has shown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nngeo_core.layers.overview import aligned
from nngeo_generators.network import Network
from nngeo_generators.plan import Use

__all__ = ["Coverage", "Reading", "coverage_of"]


@dataclass(frozen=True)
class Reading:
    """One module that a layer's Jacobian is read from, or contributes to.

    Attributes:
        layer_id: The layer.
        module: The module's path, or `"(whole model)"` for the function of the model's outputs.
        way: The rule that reads it, and how.
        instead_of: What was planned for the layer before a batch showed that it does not do; empty if it does.
    """

    layer_id: str
    module: str
    way: str
    instead_of: str


@dataclass(frozen=True)
class Coverage:
    """How a generator obtains the derivative of each layer; print it for a table.

    Attributes:
        readings: What is read for each layer, in the order of the layer collection; tied parameters have several.
        examined: Whether the plan was compared with a plain gradient pass on a batch.
    """

    readings: tuple[Reading, ...]
    examined: bool

    @property
    def promoted(self) -> tuple[str, ...]:
        """The layers that go another way than planned."""
        return tuple(dict.fromkeys(reading.layer_id for reading in self.readings if reading.instead_of))

    def __str__(self) -> str:
        rows = [("layer", "module", "way", "instead of")]
        for reading in self.readings:
            rows.append((reading.layer_id or "''", reading.module or "''", reading.way, reading.instead_of))
        columns = slice(None) if self.promoted else slice(3)
        note = [] if self.examined else ["as planned: no batch was compared with a plain gradient yet"]
        return "\n".join([*aligned([row[columns] for row in rows]), *note])


def coverage_of(plan: Sequence[Use], planned: Sequence[Use], layer_ids: Iterable[str], examined: bool) -> Coverage:
    """What a plan does for each layer.

    Args:
        plan: The plan in use.
        planned: The plan that it was made from.
        layer_ids: The layers, in order.
        examined: Whether a batch was looked at.
    """
    readings: list[Reading] = []
    for layer_id in layer_ids:
        uses, before = ([use for use in some if use.layer_id == layer_id] for some in (plan, planned))
        instead_of = "" if uses == before else " + ".join(f"{use.rule.name} of '{use.path}'" for use in before)
        readings += [Reading(layer_id, _module(use), f"{use.rule.name}: {use.rule.way}", instead_of) for use in uses]
    return Coverage(tuple(readings), examined)


def _module(use: Use) -> str:
    return "(whole model)" if isinstance(use.module, Network) else use.path
