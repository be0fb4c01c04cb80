"""What every part agrees on: dtypes and damping."""

import numpy
import pytest
import torch

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul, result_dtype


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_kept_in_float32_at_least(given: torch.dtype, expected: torch.dtype) -> None:
    assert result_dtype(given) == expected


@pytest.mark.parametrize("given", [0.25, torch.tensor(0.25), numpy.float32(0.25), numpy.float64(0.25)])
def test_one_number_is_a_damping(given: float) -> None:
    regul = checked_regul(given)
    assert type(regul) is float
    assert regul == 0.25


def test_zero_and_integers_are_dampings() -> None:
    assert (checked_regul(0), checked_regul(2), checked_regul(torch.tensor(3))) == (0.0, 2.0, 3.0)
    assert DEFAULT_REGUL == 1e-8


@pytest.mark.parametrize("given", [-1e-12, float("nan"), float("inf"), torch.tensor(-1.0)])
def test_no_damping_below_zero_or_without_end(given: float) -> None:
    with pytest.raises(ValueError, match=r"a finite number >= 0, the r of M \+ r I; got (-|nan|inf)"):
        checked_regul(given)


@pytest.mark.parametrize(
    ("given", "name"), [("1", "str"), (None, "NoneType"), (True, "bool"), (1j, "complex"), ([1.0], "list")]
)
def test_what_is_no_number_is_no_damping(given: object, name: str) -> None:
    with pytest.raises(TypeError, match=rf"one number, the r of M \+ r I; got {name}"):
        checked_regul(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1,), (2,), (0,), (2, 2)])
def test_several_numbers_are_no_damping(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one number, .*; got a tensor of shape \("):
        checked_regul(torch.ones(shape))
