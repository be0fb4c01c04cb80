"""Which order of contraction to take: multiplications and bytes counted, in one place.

A Kronecker Jacobian J[c, n] = sum_s g[c, n, s] (x) a[n, s] can be contracted with itself in several orders. The counts below
are multiplications per group; the class that holds the tensors asks here and does what it is told.
"""

from collections.abc import Iterator

__all__ = ["BLOCK_BYTES", "blocks", "grams_are_cheaper", "outputs_come_first"]

BLOCK_BYTES = 12 * 2**20
"""Size of the temporaries that a contraction forms at once: larger ones cost more in page faults than in arithmetic."""


def blocks(count: int, bytes_each: int, limit: int = BLOCK_BYTES) -> Iterator[slice]:
    """Slices of `range(count)`, as even as they come, each under `limit` bytes (but never empty)."""
    most = max(1, limit // max(1, bytes_each))
    number = -(-count // most)
    for k in range(number):
        yield slice(count * k // number, count * (k + 1) // number)


def grams_are_cheaper(rows: tuple[int, int, int], columns: tuple[int, int, int], outputs: int, inputs: int) -> bool:
    """Whether J J'^T is cheaper from the Gram matrices of positions than from per-example gradients.

    From Gram matrices: one product of all inputs, one of all output gradients, and their product entry by entry, summed over
    pairs of positions. From gradients: form both sides, then multiply them.

    Args:
        rows: (c, n, s) of J.
        columns: (c, n, s) of J'.
        outputs: G.
        inputs: A.
    """
    (c, n, s), (k, m, t) = rows, columns
    positions = n * s * m * t * inputs + c * n * s * k * m * t * (outputs + (s * t > 1))
    gradients = (c * n * s + k * m * t) * outputs * inputs + c * n * k * m * outputs * inputs
    return positions <= gradients


def outputs_come_first(c: int, n: int, s: int, q: int) -> bool:
    """Whether J^T J is cheaper by summing g g^T over outputs first, then one product over examples.

    Without shared positions J[c, n] J[c, n]^T is (g g^T) (x) (a a^T), and the sum over c can be taken before the product with
    the inputs: n (GA)^2 multiplications in place of c n (GA)^2.
    """
    return s == 1 and q == 1 and c > 1 and n > 0
