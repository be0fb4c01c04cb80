"""GramMatrix: shuffling loaders, outputs of any shape, other models, buffers, identities, and bad input."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nngeo_core import FIM, FVector, GramMatrix, LayerCollection, PluginError, ShapeError
from nngeo_core.plugins import registry
from nngeo_core.testing import MODELS, output_jacobian, relative_error
from nngeo_core.verbs import gram

TOLERANCE = 1e-10


def oracle(model: nn.Module, inputs: Tensor, others: Tensor | None = None, function: Any = None) -> Tensor:
    names = [name for names in LayerCollection.from_model(model).parameter_names.values() for name in names]
    rows = output_jacobian(model, inputs, names, function)
    columns = rows if others is None else output_jacobian(model, others, names, function)
    return torch.einsum("cnd,kmd->cnkm", rows, columns)


@pytest.mark.parametrize("budget", [None, 20_000])
def test_a_shuffling_loader_gives_a_symmetric_positive_kernel(budget: int | None) -> None:
    case = MODELS["mlp"]()
    loader = DataLoader(TensorDataset(case.inputs), batch_size=2, shuffle=True)
    dense = GramMatrix(case.model, loader, memory_budget=budget).get_dense_tensor()
    assert torch.equal(dense, dense.permute(2, 3, 0, 1))
    values = torch.linalg.eigvalsh(dense.reshape(21, 21))
    assert values[0] >= -1e-12 * values[-1]
    expected = torch.linalg.eigvalsh(oracle(case.model, case.inputs).reshape(21, 21))
    assert relative_error(values, expected) <= TOLERANCE


class Counted:
    """A loader that counts how often it is read."""

    def __init__(self, *batches: Any) -> None:
        self.batches, self.reads = batches, 0

    def __iter__(self) -> Any:
        self.reads += 1
        yield from self.batches


@pytest.mark.parametrize("representation", ["dense", "blockdiag", "trace", "implicit"])
@pytest.mark.parametrize("budget", [1, None])
def test_every_loader_is_read_once(representation: str, budget: int | None) -> None:
    case = MODELS["conv"]()
    rows, columns = Counted(*case.inputs.split(2)), Counted(case.inputs[:1], case.inputs[1:])
    kernel = GramMatrix(case.model, rows, representation, loader2=columns, memory_budget=budget)
    kernel.mv(FVector(torch.ones(kernel.size()[2:], dtype=torch.float64)))
    kernel.norm()
    assert (rows.reads, columns.reads) == (1, 1)


def test_a_loader_that_fills_the_same_memory_again() -> None:
    case = MODELS["mlp"]()

    class Reusing:
        def __iter__(self) -> Any:
            memory = torch.empty(1, 5, dtype=torch.float64)
            for row in case.inputs:
                yield (memory.copy_(row),)

    for budget in (1, None):
        found = GramMatrix(case.model, Reusing(), memory_budget=budget).get_dense_tensor()
        assert relative_error(found, oracle(case.model, case.inputs)) <= TOLERANCE


def test_output_axes_are_row_major() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 6).double(), torch.randn(4, 3, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return model(x).view(-1, 2, 3).tanh()

    found = GramMatrix(model, inputs, function=function).get_dense_tensor()
    assert found.shape == (6, 4, 6, 4)
    assert relative_error(found, oracle(model, inputs, function=lambda x: function(x).flatten(1))) <= TOLERANCE


@pytest.mark.parametrize("model", ["conv-groups", "called-twice", "positions-sequence"])
def test_traces_and_spectra_are_those_of_the_fisher_matrix(model: str) -> None:
    case = MODELS[model]()
    kernel, fisher = GramMatrix(case.model, case.inputs), FIM(case.model, case.inputs, "dense", variant="regression")
    n = len(case.inputs)
    assert relative_error(kernel.trace(), n * fisher.trace()) <= TOLERANCE
    large, small = (x.eigendecomposition().values for x in (kernel, fisher))
    k = min(len(large), len(small))
    assert relative_error(large[-k:], n * small[-k:]) <= TOLERANCE


@pytest.mark.parametrize("representation", ["dense", "blockdiag", "trace"])
def test_a_memory_map_is_filled(representation: str, tmp_path: Path) -> None:
    case = MODELS["mlp"]()
    expected = GramMatrix(case.model, case.inputs, representation).data  # type: ignore[attr-defined]
    shape = tuple(expected.shape)
    memory = numpy.memmap(tmp_path / "kernel", dtype="float64", mode="w+", shape=shape)
    memory[:] = 7
    kernel = GramMatrix(case.model, case.inputs.split(2), representation, out=memory, memory_budget=4096)
    memory.flush()
    stored = torch.from_numpy(numpy.fromfile(tmp_path / "kernel").reshape(shape))
    assert relative_error(stored, expected) <= TOLERANCE
    assert torch.equal(kernel.data, stored)  # type: ignore[attr-defined]


BUFFERS = [
    (
        torch.empty(3, 7, 3, 6, dtype=torch.float64),
        ShapeError,
        r"shape \(3, 7, 3, 6\), and the kernel has shape \(3, 7, 3, 7\)",
    ),
    (torch.empty(3, 7, 3, 7), TypeError, "would lose digits"),
    ([1.0], TypeError, "a tensor or a numpy array"),
    (torch.empty(3, 7, 3, 7, dtype=torch.complex128), TypeError, "complex128 and would lose digits"),
    (torch.empty(3, 7, 1, 7, dtype=torch.float64).expand(3, 7, 3, 7), ValueError, "share one place in memory"),
    (torch.empty(600).double().as_strided((3, 7, 3, 7), (49, 7, 7, 1)), ValueError, "share one place in memory"),
    (numpy.zeros((3, 7, 3, 7), dtype=">f8"), TypeError, "dtype >f8 .* the machine's own byte order"),
    (numpy.zeros((3, 7, 3, 7))[::-1], TypeError, "which torch cannot write to .* give a contiguous one"),
]


@pytest.mark.parametrize(("buffer", "error", "message"), BUFFERS)
def test_a_buffer_that_does_not_fit_is_refused(buffer: Any, error: type[Exception], message: str) -> None:
    case = MODELS["mlp"]()
    with pytest.raises(error, match=message):
        GramMatrix(case.model, case.inputs, out=buffer)


@pytest.mark.parametrize(("representation", "shape"), [("dense", (3, 7, 3, 7)), ("trace", (7, 7))])
def test_a_buffer_that_is_read_only_is_refused_and_stays_as_it_was(
    representation: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    case = MODELS["mlp"]()
    numpy.memmap(tmp_path / "kernel", dtype="float64", mode="w+", shape=shape).flush()
    array = numpy.zeros(shape)
    array.setflags(write=False)
    for buffer in (numpy.memmap(tmp_path / "kernel", dtype="float64", mode="r", shape=shape), array):
        with pytest.raises(ValueError, match=r"read-only .* mode='r\+'"):
            GramMatrix(case.model, case.inputs, representation, out=buffer)
        assert not buffer.any()


def one_for_each_token(inputs: Tensor) -> Tensor:
    return inputs.sum(2) * WEIGHT.weight.sum()


WEIGHT = nn.Linear(2, 1)


@pytest.mark.parametrize("representation", ["dense", "trace"])
def test_outputs_that_change_width_are_refused(representation: str) -> None:
    wide, narrow = torch.ones(2, 3, 2), torch.ones(2, 2, 2)
    with pytest.raises(ShapeError, match="examples 2 to 3 have 2 outputs each, and the first ones 3"):
        GramMatrix(WEIGHT, iter([wide, narrow]), representation, one_for_each_token)
    with pytest.raises(ShapeError, match="examples 0 to 1 have 2 outputs each, and the first ones 3"):
        GramMatrix(WEIGHT, wide, representation, one_for_each_token, loader2=narrow)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"representation": "diag"}, PluginError, "'blockdiag', 'dense', 'implicit', 'trace'"),
    ({"representation": FVector}, TypeError, "a concrete FMat class; got .*FVector.*implicit"),
    ({"method": "fastest"}, ValueError, "'positions', 'gradients', 'products'; got 'fastest'"),
    ({"memory_budget": 0}, ValueError, "memory_budget is a positive number"),
    ({"loader2": torch.ones(0, 5, dtype=torch.float64)}, ValueError, "no examples"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    case = MODELS["mlp"]()
    with pytest.raises(error, match=message):
        GramMatrix(case.model, case.inputs, **options)


def test_a_class_serves_as_well_as_its_name() -> None:
    case = MODELS["mlp"]()
    kind = registry.representation("trace", kind="fmat")
    assert type(gram.GramMatrix(case.model, case.inputs, kind)) is kind


def test_the_model_and_the_random_state_are_untouched() -> None:
    case = MODELS["conv-relu-inplace-pool"]()
    before, state = {k: v.clone() for k, v in case.model.state_dict().items()}, torch.get_rng_state()
    GramMatrix(case.model, DataLoader(TensorDataset(case.inputs), batch_size=2, shuffle=True), memory_budget=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(case.model.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is None for p in case.model.parameters())


def test_the_callers_modes_do_not_matter() -> None:
    case = MODELS["mlp"]()
    expected = oracle(case.model, case.inputs)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        kernel = GramMatrix(case.model, case.inputs)
    u = FVector(torch.ones(3, 7, dtype=torch.float64, requires_grad=True))
    kernel.vTMv(u).backward()
    assert relative_error(kernel.get_dense_tensor(), expected) <= TOLERANCE
    assert relative_error(u.vector_repr.grad, 2 * expected.sum((2, 3))) <= TOLERANCE
