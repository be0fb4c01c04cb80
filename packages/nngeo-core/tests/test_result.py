"""RepresentationComparison: its tables, files and pictures, from figures made up for it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nngeo_core import RepresentationComparison, StorageError
from nngeo_core.verbs.comparison.records import Agreement, Average, LayerTimes, Measurement, Reference

HALF, NINE = Average(0.5, 0.01), Average(0.9, None)
GOOD = Agreement(-0.25, HALF, NINE, (NINE, NINE), (HALF, Average(0.1, 0.02)))
BAD = Agreement(None, None, None, (None, None), (None, None))
TIMES = LayerTimes(2.0, 0.001, None, 0.25)
COMPARISON = RepresentationComparison(
    {
        "kfac": Measurement(GOOD, {"fc": GOOD, "": BAD}, {}, {"fc": 2048}, 3 * 2**20, None, 2.0, 0.003, 0.2, 0.1, {}),
        "tim|ed": Measurement(GOOD, {"fc": GOOD}, {"fc": TIMES}, {}, 100, 7, 2.0, 0.003, 0.2, 0.1, {}),
        "none": Measurement(BAD, {}, {}, {}, None, 0, None, None, None, None, {"build": "because\nof a | bar"}),
    },
    Reference(8.0, HALF, {"fc": 5.0, "": 3.0}, 0.004),
    (0.1, 10.0),
    {"fc": 20, "": 1},
    7,
    3,
    "regression",
    5,
    123,
    "float32",
    "cpu",
)


@pytest.fixture
def pyplot() -> Iterator[Any]:
    """No window, and no figure left open."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_printed_as_tables_with_the_recommendation_last() -> None:
    lines = str(COMPARISON).splitlines()
    assert lines[0] == (
        "21 parameters in 2 layers, 7 examples, regression (5 draws for each example), 3 vectors, float32 on cpu; tr F = 8, "
        "v^T F v = 0.5"
    )
    (row,) = [line for line in lines if line.startswith("kfac") and "-0.25" in line]
    assert row.split() == ["kfac", "-0.25", "+0.5", "±", "0.01", "0.9"]
    assert [line.split()[1:] for line in lines if line.startswith("none  ")][:2] == [["n/a"] * 3, ["n/a"] * 2]
    (cost,) = [line for line in lines if line.startswith("kfac") and "MiB" in line]
    assert cost.split() == ["kfac", "2", "s", "3", "ms", "200", "ms", "100", "ms", "3", "MiB", "n/a"]
    assert "Within layers" not in str(COMPARISON)
    assert lines[-1] == COMPARISON.recommendation
    assert lines[-1].startswith("Recommendation: tim|ed for products and solves (mean cosine with F v 0.9 and")


def test_markdown_has_the_layers_and_escapes_what_would_break_a_table() -> None:
    text = COMPARISON.to_markdown()
    assert r"| tim\|ed | -0.25 | +0.5 ± 0.01 | 0.9 |" in text
    assert "### Within layers: kfac" in text
    assert "| fc | 20 | 2 KiB | -0.25 | +0.5 ± 0.01 | 0.9 | 0.1 ± 0.02 | 0.9 |\n" in text
    assert "| '' | 1 | n/a | n/a | n/a | n/a | n/a | n/a |\n" in text
    assert "| fc | 20 | n/a | -0.25 | +0.5 ± 0.01 | 0.9 | 0.1 ± 0.02 | 0.9 | 2 s | 1 ms | n/a | 250 ms |\n" in text
    assert r"| none | build | because of a \| bar |" in text
    assert text.endswith(f"**{COMPARISON.recommendation}**\n")
    assert "Within layers" not in COMPARISON.to_markdown(per_layer=False)


def test_json_and_back() -> None:
    text = COMPARISON.to_json()
    assert RepresentationComparison.from_json(text) == COMPARISON
    assert RepresentationComparison.from_dict(COMPARISON.to_dict()) == COMPARISON
    found = json.loads(text)
    assert found["recommendation"] == COMPARISON.recommendation
    assert found["measurements"]["kfac"]["total"]["form_error"] == {"mean": 0.5, "standard_error": 0.01}
    assert found["measurements"]["none"]["total"]["trace_error"] is None


@pytest.mark.parametrize("given", [{}, {"format": 2}])
def test_something_else_is_refused(given: dict[str, int]) -> None:
    with pytest.raises(StorageError, match=f"its format is {given.get('format')}, expected 1"):
        RepresentationComparison.from_dict(given)


@pytest.mark.parametrize("comparison", [COMPARISON, replace(COMPARISON, dampings=(0.0, 1.0))], ids=["log", "from zero"])
@pytest.mark.usefixtures("pyplot")
def test_pictures_show_what_is_known(comparison: RepresentationComparison, tmp_path: Path) -> None:
    figure = comparison.plot()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    trace, form, cosine, memory, residual, solve_cosine, times, legend = figure.axes
    assert [bar.get_height() for bar in trace.patches] == [-0.25, -0.25]
    assert [bar.get_height() for bar in cosine.patches] == [0.9, 0.9]
    assert [bar.get_height() for bar in memory.patches] == [3.0, 100 / 2**20]
    assert [text.get_text() for text in form.get_xticklabels()] == ["kfac", "tim|ed", "none"]
    assert list(residual.containers[0].lines[0].get_ydata()) == [0.5, 0.1]
    assert list(solve_cosine.containers[0].lines[0].get_xdata()) == list(comparison.dampings)
    assert [bar.get_height() for bar in times.patches] == [2.0, 0.003, 0.1] * 2
    assert [text.get_text() for text in legend.get_legend().get_texts()] == ["kfac", "tim|ed", "none"]


def test_a_figure_of_ones_own_is_drawn_in(pyplot: Any) -> None:
    figure = pyplot.figure()
    assert COMPARISON.plot(figure) is figure
    assert len(figure.axes) == 8


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'nngeo-core\[plots\]'"):
        COMPARISON.plot()
