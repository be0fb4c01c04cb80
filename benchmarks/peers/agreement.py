"""Whether libraries agree, before anything is timed."""

from dataclasses import dataclass
from typing import Any

from benchmarks.peers.problem import NotAvailable, Operation, Problem, difference

TOLERANCE = 2e-3
"""Relative distance of float32 results that counts as agreement."""
REFERENCES = ("nngeo", "torch.func", "NNGeometry", "curvlinops", "BackPACK")
"""Whose numbers the others are compared with: the first that has the operation."""


@dataclass
class Entry:
    """What one library has for one operation of a workload.

    Attributes:
        operation: None if it is not available.
        distance: From the reference.
        note: Why it is not available, or what went wrong.
    """

    operation: Operation | None
    distance: float | None = None
    note: str = ""


def entry(library: type, problem: Problem, name: str) -> tuple[Entry, Any]:
    """An operation tried once, and its numbers."""
    try:
        operation = library(problem.copied()).operation(name)
        if operation.prepare is not None:
            operation.prepare()
        return Entry(operation), operation.numbers(operation.run())
    except NotAvailable as reason:
        return Entry(None, note=str(reason)), None
    except Exception as error:  # a peer may raise anything
        first = (str(error).splitlines() or [""])[0]
        return Entry(None, note=f"raises {type(error).__name__}: {first[:80]}"), None


def compared(libraries: dict[str, type], problem: Problem, name: str) -> dict[str, Entry]:
    """Each library's operation of that name, with its distance from the reference."""
    found = {title: entry(library, problem, name) for title, library in libraries.items()}
    reference = next((found[title][1] for title in REFERENCES if title in found and found[title][1] is not None), None)
    entries = {}
    for title, (tried, numbers) in found.items():
        if numbers is not None:
            try:
                tried.distance = difference(numbers, reference)
            except (ValueError, TypeError) as error:
                tried.note = str(error)[:80]
        entries[title] = tried
    return entries
