"""How many examples and directions go at once: the budget is kept, and examples are cut before directions."""

import pytest
import torch

from nngeo_generators.chunking import (
    DEFAULT_MEMORY_BUDGET,
    LARGEST_TENSOR,
    Chunks,
    Footprint,
    Graph,
    choose_chunks,
    choose_part,
    measure,
)

CPU, ACCELERATOR = torch.device("cpu"), torch.device("cuda")


def test_a_footprint_sums_the_calls_and_keeps_the_largest() -> None:
    assert measure([(3, 10), (5, 2)]) == Footprint(8, 12, 5, 10)


def test_no_calls_have_no_footprint() -> None:
    assert measure([]) == Footprint(0, 0, 0, 0)


@pytest.mark.parametrize("budget", [1, 100, 1_000, 12_345, 10**6])
@pytest.mark.parametrize("directions", [1, 3, 10, 1000])
def test_what_is_chosen_fits_the_budget_or_is_the_least_there_is(budget: int, directions: int) -> None:
    one = Footprint(inputs=40, gradients=25, largest_input=30, largest_gradient=15)
    chunks = choose_chunks(one, directions, ACCELERATOR, budget)
    assert chunks.examples >= 1 and 1 <= chunks.directions <= directions
    bytes_used = chunks.examples * (one.inputs + chunks.directions * one.gradients)
    assert bytes_used <= budget or chunks == Chunks(1, 1)
    assert chunks.examples == 1 or chunks.directions == directions


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1000, Chunks(7, 4)), (140, Chunks(1, 4)), (139, Chunks(1, 3)), (65, Chunks(1, 1)), (1, Chunks(1, 1))],
)
def test_directions_are_cut_only_when_one_example_is_too_large(budget: int, expected: Chunks) -> None:
    """One example takes 40 + 25 bytes a direction: 140 with its four."""
    assert choose_chunks(Footprint(40, 25, 40, 25), 4, ACCELERATOR, budget) == expected


def test_a_cpu_bounds_the_largest_tensor() -> None:
    largest = LARGEST_TENSOR["cpu"]
    one = Footprint(inputs=8, gradients=largest // 10, largest_input=8, largest_gradient=largest // 10)
    assert choose_chunks(one, 2, CPU, 100 * largest) == Chunks(5, 2)
    assert choose_chunks(one, 20, CPU, 100 * largest) == Chunks(1, 10)


def test_a_model_without_calls_goes_through_at_once() -> None:
    chunks = choose_chunks(measure([]), 10, CPU, DEFAULT_MEMORY_BUDGET)
    assert chunks.examples > 10**6 and chunks.directions == 10


@pytest.mark.parametrize(
    ("budget", "expected"), [(440, Chunks(2, 4, 1)), (439, Chunks(1, 4, 1)), (175, Chunks(1, 3, 1))]
)
def test_gradients_on_their_way_count(budget: int, expected: Chunks) -> None:
    """One example takes 40 + 25 bytes a direction, and 20 more for what the widest operation gets and gives: 220 in all."""
    one, graph = Footprint(40, 25, 40, 25), Graph(total=1000, largest=10)
    assert choose_chunks(one, 4, ACCELERATOR, budget, graph) == expected


def test_gradients_beside_the_calls_make_no_tensor_larger() -> None:
    assert measure([(3, 10), (5, 2)], beside=7) == Footprint(8, 19, 5, 10)


@pytest.mark.parametrize(("one", "device", "keeps_graph", "expected"), [
    (Graph(total=2**19, largest=2**16), CPU, False, 64),
    (Graph(total=2**19, largest=2**16), CPU, True, 48),
    (Graph(total=2**23, largest=2**16), CPU, True, 16),
    (Graph(total=2**19, largest=2**16), ACCELERATOR, True, 682),
    (Graph(total=2**40, largest=2**30), CPU, True, 1),
    (Graph(total=0, largest=0), CPU, True, 12 * 2**20),
])  # fmt: skip
def test_graphs_are_cut_while_their_tensors_stay_large(
    one: Graph, device: torch.device, keeps_graph: bool, expected: int
) -> None:
    """A third of 12 MiB for the largest tensor, 24 MiB for a graph, but 1 MiB at least for its largest tensor."""
    assert choose_part(one, device, 2**30, keeps_graph) == expected
