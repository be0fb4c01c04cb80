"""The errors raised on purpose form one tree, and are what Python would call them."""

import pytest

from nngeo_core import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_an_nngeo_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.NNGeoError)


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConvergenceError", ArithmeticError),
        ("LayerCollectionMismatchError", ValueError),
        ("NonFiniteError", ArithmeticError),
        ("NotPositiveDefiniteError", ArithmeticError),
        ("ShapeError", ValueError),
        ("UnsupportedLayerError", NotImplementedError),
        ("UnsupportedOperationError", NotImplementedError),
    ],
)
def test_an_error_is_caught_as_python_s_own(name: str, builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="^what happened$"):
        raise getattr(errors, name)("what happened")


def test_all_errors_are_listed() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__)
