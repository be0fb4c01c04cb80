"""The recommendation's rule, on figures made up for it."""

from typing import Any

from nngeo_core.verbs.comparison.recommendation import recommended
from nngeo_core.verbs.comparison.records import Agreement, Average, Measurement


def measurement(
    cosine: Any = None, residual: Any = None, size: int | None = 2**20, reasons: dict[str, str] | None = None
) -> Measurement:
    """With a cosine (mean, standard error), the residuals 0, `residual` and 0 at three dampings, and stored bytes."""
    cos = None if cosine is None else Average(*cosine)
    zero = Average(0.0, 0.0)
    middle = None if residual is None else Average(*residual)
    total = Agreement(0.0, zero, cos, (None, None, None), (zero, middle, zero))
    return Measurement(total, {}, {}, {}, size, None, 1.0, 1.0, 1.0, 1.0, reasons or {})


def advice(**measurements: Measurement) -> str:
    return recommended(measurements, (0.1, 1.0, 10.0))


def test_products_by_the_cosine_and_solves_by_the_residual_at_the_middle_damping() -> None:
    found = advice(diag=measurement((0.2, 0.01), (0.9, 0.01)), ekfac=measurement((0.8, 0.01), (0.5, 0.01)),
                   kfac=measurement((0.7, 0.01), (0.4, 0.01)))  # fmt: skip
    assert found == (
        "Recommendation: ekfac for products (mean cosine with F v 0.8; stores 1 MiB), "
        "kfac for solves (mean residual 0.4 at r = 1; stores 1 MiB)."
    )


def test_one_that_is_best_at_both_is_named_once() -> None:
    assert advice(diag=measurement((0.2, 0.0), (0.9, 0.0)), kfac=measurement((0.7, 0.0), (0.4, 0.0))) == (
        "Recommendation: kfac for products and solves (mean cosine with F v 0.7 and mean residual 0.4 at r = 1; "
        "stores 1 MiB)."
    )


def test_within_one_standard_error_the_smallest_matrix_then_the_first() -> None:
    big, small = measurement((0.70, 0.02), (0.40, 0.02), 2**21), measurement((0.69, 0.001), (0.41, 0.001), 2**19)
    assert "small for products and solves (mean cosine with F v 0.69" in advice(big=big, small=small)
    assert "first for products" in advice(
        first=measurement((0.7, 0.1), (0.4, 0.1)), second=measurement((0.7, 0.1), (0.4, 0.1))
    )
    far = measurement((0.67, 0.5), (0.43, 0.5), 2**19)
    assert "big for products and solves" in advice(big=big, far=far)


def test_figures_that_are_missing_do_not_count() -> None:
    unbuilt = measurement(size=None, reasons={"build": "no"})
    assert advice(unbuilt=unbuilt) == (
        "Recommendation: none, since none of the representations has products or solves of this model."
    )
    assert advice(unbuilt=unbuilt, diag=measurement((0.2, None), (0.9, None))).startswith("Recommendation: diag for")
    only_products = advice(quasi=measurement((0.2, 0.1)))
    assert only_products == "Recommendation: quasi for products (mean cosine with F v 0.2; stores 1 MiB)."
