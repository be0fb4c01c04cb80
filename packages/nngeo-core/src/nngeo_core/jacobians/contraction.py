"""Which order of contraction to take: multiplications and memory traffic counted, in one place.

A Kronecker Jacobian J[c, n] = sum_s g[c, n, s] (x) a[n, s] can be contracted with itself in several orders. The counts below
are multiplications per group; the class that holds the tensors asks here and does what it is told.
"""

from collections.abc import Iterator
from typing import Literal, TypeAlias

__all__ = [
    "BLOCK_BYTES",
    "GramMethod",
    "Pairing",
    "TOUCH",
    "blocks",
    "comparing_is_cheaper",
    "gram_costs",
    "grams_are_cheaper",
    "in_sequence_is_cheaper",
    "norm_by_positions_is_cheaper",
    "outputs_come_first",
    "outputs_go_at_once",
    "pairs_are_cheaper",
]

GramMethod: TypeAlias = Literal["positions", "gradients", "products"]
"""An order in which J J'^T is contracted."""

Pairing: TypeAlias = Literal["all", "equal", "summed"]
"""Which output directions of J and J' meet."""

MOST_PAIRED = 16
"""Positions up to which squares are summed by pairs of them, whose terms cancel the more the more there are."""

FEW_INPUTS = 32
"""Inputs up to which a product of them with themselves takes less than the calls for it: measured, 20 to 48."""

BLOCK_BYTES = 12 * 2**20
"""Size of the temporaries that a contraction forms at once: larger ones cost more in page faults than in arithmetic."""

TOUCH = 16
"""Multiplications of a large matrix product that take as long as writing or reading one number: measured, 10 to 30."""

REORDER = 12 * TOUCH
"""Those that take as long as laying one number in another order between two small products: measured, 8 to 14 times that."""


def blocks(count: int, bytes_each: int, limit: int = BLOCK_BYTES) -> Iterator[slice]:
    """Slices of `range(count)`, as even as they come, each under `limit` bytes (but never empty)."""
    most = max(1, limit // max(1, bytes_each))
    number = -(-count // most)
    for k in range(number):
        yield slice(count * k // number, count * (k + 1) // number)


def grams_are_cheaper(rows: tuple[int, int, int], columns: tuple[int, int, int], outputs: int, inputs: int) -> bool:
    """Whether J J'^T is cheaper from the Gram matrices of positions than from per-example gradients; see `gram_costs`."""
    costs = gram_costs(rows, columns, outputs, inputs)
    return costs["positions"] <= costs["gradients"]


def gram_costs(
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
    outputs: int,
    inputs: int,
    pairing: Pairing = "all",
) -> dict[GramMethod, int]:
    """Cost of each order in which J J'^T can be contracted (Novak, Sohl-Dickstein & Schoenholz 2022), in multiplications.

    `"positions"`: one product of all inputs, one of all output gradients, and their product entry by entry, summed over
    pairs of positions; or, where that is less, the inputs' Gram matrix times one side's gradients, then the other's.
    `"gradients"`: form the per-example gradients of both sides, then multiply them. `"products"`: form those of the rows,
    and push each of them through the columns' layer, which is a Jacobian-vector product.

    Entries that an order writes and reads again between products, and those of the sum that it adds to, count as `TOUCH`
    multiplications each time, and as `REORDER` where the next product wants them in another order: many small products save
    arithmetic and spend it on memory.

    Args:
        rows: (c, n, s) of J.
        columns: (c, n, s) of J'.
        outputs: G.
        inputs: A.
        pairing: Which directions meet: "all" of them, "equal" ones, or equal ones whose tiles are "summed".

    Example:
        >>> gram_costs((10, 50, 1), (10, 50, 1), 100, 100)["positions"]
        37250000
    """
    (c, n, s), (k, m, t) = rows, columns
    pairs, positions, several = (c * k if pairing == "all" else c) * n * m, n * s * m * t, s * t > 1
    weights = outputs * inputs
    both = _entry_by_entry(rows, columns, outputs, pairing)
    if pairing == "all" and several:
        both = min(both, _in_sequence(rows, columns, outputs))
    return {
        "positions": positions * (inputs + several * TOUCH) + both,
        "gradients": (c * n * s + k * m * t) * weights
        + 2 * TOUCH * (c * n + k * m) * weights
        + pairs * (weights + 2 * TOUCH),
        "products": c * n * (s + TOUCH) * weights
        + c * n * m * t * (weights + REORDER * outputs)
        + pairs * (t * outputs + REORDER),
    }


def in_sequence_is_cheaper(rows: tuple[int, int, int], columns: tuple[int, int, int], outputs: int) -> bool:
    """Whether the inputs' Gram matrix is cheaper times one side's gradients, then the other's, than entry by entry.

    Takes what `gram_costs` takes, where all directions meet.
    """
    return _in_sequence(rows, columns, outputs) < _entry_by_entry(rows, columns, outputs, "all")


def _entry_by_entry(rows: tuple[int, int, int], columns: tuple[int, int, int], outputs: int, pairing: Pairing) -> int:
    (c, n, s), (k, m, t) = rows, columns
    positions, meeting = n * s * m * t, c * k if pairing == "all" else c
    if pairing == "summed":
        return positions * (meeting * outputs + 3 * TOUCH)
    return positions * meeting * (outputs + 3 * TOUCH)


def _in_sequence(rows: tuple[int, int, int], columns: tuple[int, int, int], outputs: int) -> int:
    (c, n, s), (k, m, t) = rows, columns
    return (t + c + REORDER) * n * s * k * m * outputs


def comparing_is_cheaper(
    rows: tuple[int, int, int], columns: tuple[int, int, int], outputs: int, vocabulary: int, pairing: Pairing = "all"
) -> bool:
    """Whether J J'^T of look-ups is cheaper by comparing indices of positions than by gradients of the rows looked up.

    Args:
        rows: (c, n, s) of J.
        columns: (c, n, s) of J'.
        outputs: G.
        vocabulary: How many rows of the table both sides look up.
        pairing: Which directions meet.
    """
    (c, n, _), (k, m, _) = rows, columns
    gradients = ((c * k if pairing == "all" else c) * n * m + 2 * TOUCH * (c * n + k * m)) * vocabulary * outputs
    return gram_costs(rows, columns, outputs, 1, pairing)["positions"] <= gradients


def outputs_come_first(c: int, n: int, s: int, q: int) -> bool:
    """Whether J^T J is cheaper by summing g g^T over outputs first, then one product over examples.

    Without shared positions J[c, n] J[c, n]^T is (g g^T) (x) (a a^T), and the sum over c can be taken before the product with
    the inputs: n (GA)^2 multiplications in place of c n (GA)^2.
    """
    return s == 1 and q == 1 and c > 1 and n > 0


def outputs_go_at_once(n: int, outputs: int, inputs: int, itemsize: int) -> bool:
    """Whether all pairs of outputs are weights of one product, where `outputs_come_first`, and not those of one after another.

    One product writes n (G^2 + A^2) entries besides the result, which it computes both halves of and lays in another order.
    Output by output it is half of that, written in its place, by G times several calls, which few inputs are not worth.
    """
    return (
        inputs < FEW_INPUTS and (n * (outputs**2 + inputs**2) + (outputs * inputs) ** 2) * itemsize <= 2 * BLOCK_BYTES
    )


def pairs_are_cheaper(c: int, s: int) -> bool:
    """Whether the diagonal of J^T J is cheaper by pairs of positions than by per-example gradients.

    n s (s + 1) / 2 products G A in place of c n s of them, and nothing of that size is written for each example.
    """
    return 0 < s <= min(MOST_PAIRED, 2 * c - 1)


def norm_by_positions_is_cheaper(c: int, s: int, outputs: int, inputs: int) -> bool:
    """Whether the trace of J^T J is cheaper from Gram matrices of positions than from per-example gradients."""
    return s * (inputs + c * outputs) <= c * outputs * inputs
