"""Work is spread so that no process has much more than another."""

from itertools import product

import pytest

from nngeo_core.parallel.sharing import assigned


def loads(costs: dict[str, float], processes: int) -> list[float]:
    owners = assigned(costs, processes)
    assert owners.keys() == costs.keys()
    return [sum(cost for name, cost in costs.items() if owners[name] == rank) for rank in range(processes)]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_no_load_exceeds_that_of_the_best_division_by_a_third(processes: int) -> None:
    costs = {str(width): float(width**3) for width in (3, 4, 5, 6, 7, 8)}
    divisions = product(range(processes), repeat=len(costs))
    best = min(
        max(sum(c for c, o in zip(costs.values(), owners, strict=True) if o == rank) for rank in range(processes))
        for owners in divisions
    )
    assert max(loads(costs, processes)) <= (4 / 3) * best  # Graham (1969)


def test_more_processes_than_pieces() -> None:
    assert sorted(loads({"a": 2.0, "b": 1.0}, 4)) == [0.0, 0.0, 1.0, 2.0]
    assert assigned({}, 3) == {}


def test_equal_pieces_go_round_whatever_their_order() -> None:
    costs = dict.fromkeys("dbca", 1.0)
    assert assigned(costs, 2) == assigned(dict(reversed(costs.items())), 2) == {"a": 0, "b": 1, "c": 0, "d": 1}
