"""Several processes with a shard of the examples each compute what one process computes from all of them."""

import pytest

from .distributed_work import data, described, matrices
from .processes import run

SIZES = [2, 3, 4]


@pytest.fixture(scope="module")
def alone():
    x, y = data()
    return {name: described(F) for name, F in matrices(list(zip(x.split(3), y.split(3), strict=True))).items()}


@pytest.mark.parametrize("size", SIZES)
def test_matrices(size, alone):
    found = run("distributed_work.py", "all_matrices", size)
    for one in found:
        if isinstance(one, Exception):
            raise one
    for name, (expected, n, _) in alone.items():
        dense, count, stored = found[0][name]
        err = float((dense - expected).norm() / expected.norm())
        same = all(other[name][2] == stored for other in found)
        print(name, err, count, n, same)
