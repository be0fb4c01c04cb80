"""PMatKFAC of embeddings, whose input factor is diagonal and never formed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nngeo_core import (
    FIM,
    KroneckerFactors,
    KroneckerLayout,
    LayerCollection,
    NotPositiveDefiniteError,
    ParameterLayer,
    PVector,
    ShapeError,
    UnsupportedOperationError,
    random_pvector,
)
from nngeo_core.testing import fisher_directions, relative_error
from nngeo_reprs import PMatKFAC

ROWS, WIDTH = 7, 3


def tokens(rows: int = ROWS, *shape: int) -> Tensor:
    return torch.randint(rows, shape or (6, 4), generator=torch.Generator().manual_seed(0))


def classifier(rows: int = ROWS, **options: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(rows, WIDTH, **options), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()


def factors_by_definition(model: nn.Module, x: Tensor, padding_idx: int | None) -> tuple[Tensor, Tensor]:
    """(1/n) sum of one-hot outer products, (V, V); and G averaged over an example's look-ups that have a derivative."""
    a, g = torch.zeros(ROWS, ROWS).double(), torch.zeros(WIDTH, WIDTH).double()
    for example in x:
        kept = [k for k, token in enumerate(example.tolist()) if token != padding_idx]
        for k in kept:
            a[example[k], example[k]] += 1 / len(x)
        looked_up = model[0](example[None]).detach().requires_grad_()  # type: ignore[index]
        outputs = model[1:](looked_up)  # type: ignore[index]
        for direction in fisher_directions(outputs.detach(), "classif_logits"):
            (gradient,) = torch.autograd.grad(outputs, looked_up, direction, retain_graph=True)
            rows = gradient[0, kept]
            g += rows.T @ rows / len(kept) / len(x)
    return a, g


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_factors_and_block_are_those_of_the_definition(padding_idx: int | None) -> None:
    model, x = classifier(**({} if padding_idx is None else {"padding_idx": padding_idx})), tokens()
    matrix = FIM(model, x, PMatKFAC)
    a, g = factors_by_definition(model, x, padding_idx)
    factors, place = matrix.data["0"], matrix.layer_collection.slices()["0"]
    assert factors.inputs.shape == (1, ROWS)
    assert relative_error(factors.inputs[0], a.diagonal()) <= 1e-12
    assert relative_error(factors.outputs[0], g) <= 1e-12
    assert relative_error(matrix.get_dense_tensor()[place, place], torch.kron(a, g)) <= 1e-12


class OneHot(nn.Module):
    """A table as a linear layer on one-hot inputs, without `nn.Linear`'s transposed weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x, ROWS).double()


def test_a_table_is_a_linear_layer_on_one_hot_inputs() -> None:
    model, linear = classifier(), nn.Linear(ROWS, WIDTH, bias=False).double()
    linear.weight = nn.Parameter(model[0].weight.detach().T.clone())  # type: ignore[index, union-attr, operator]
    table = FIM(model, tokens(), PMatKFAC)
    matrix = FIM(nn.Sequential(OneHot(), linear, *model[1:]), tokens(), PMatKFAC)  # type: ignore[index]
    assert relative_error(table.data["0"].inputs.diag_embed(), matrix.data["1"].inputs) <= 1e-12
    assert relative_error(table.data["0"].outputs, matrix.data["1"].outputs) <= 1e-12
    assert relative_error(table.trace(), matrix.trace()) <= 1e-12


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_factors_do_not_depend_on_the_batches(batch_size: int) -> None:
    model, x = classifier(padding_idx=2), tokens()
    found, expected = FIM(model, [(part,) for part in x.split(batch_size)], PMatKFAC), FIM(model, x, PMatKFAC)
    assert relative_error(found.get_dense_tensor(), expected.get_dense_tensor()) <= 1e-12


LAYERS = LayerCollection(
    {"table": ParameterLayer((("weight", (5, 3)),)), "grouped": ParameterLayer((("weight", (12,)),))}
)


def kfac(seed: int = 0, full: bool = False) -> PMatKFAC:
    """A table of five rows, and two groups of three inputs and two outputs; the input factors as matrices if `full`."""
    generator = torch.Generator().manual_seed(seed)
    layouts = {"table": KroneckerLayout(1, 3, 5, False, 5), "grouped": KroneckerLayout(2, 2, 3, False)}
    data = {}
    for name, layout in layouts.items():
        inputs = torch.rand(layout.groups, layout.inputs, generator=generator, dtype=torch.float64) + 0.1
        rows = torch.randn(layout.groups, 9, layout.outputs, generator=generator, dtype=torch.float64)
        data[name] = KroneckerFactors(inputs.diag_embed() if full else inputs, rows.mT @ rows, layout)
    return PMatKFAC(data=data, layer_collection=LAYERS)


def vector(layers: LayerCollection = LAYERS) -> PVector:
    return random_pvector(layers, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


OPERATIONS: dict[str, Callable[[PMatKFAC], Tensor]] = {
    "dense": lambda matrix: matrix.get_dense_tensor(),
    "dense-by-output": lambda matrix: matrix.get_dense_tensor(split_weight_bias=False),
    "diagonal": lambda matrix: matrix.get_diag(),
    "diagonal-by-output": lambda matrix: matrix.get_diag(split_weight_bias=False),
    "trace": lambda matrix: matrix.trace(),
    "norm": lambda matrix: matrix.frobenius_norm(),
    "mv": lambda matrix: matrix.mv(vector()).get_flat_representation(),
    "quadratic-form": lambda matrix: matrix.vTMv(vector()),
    "solve": lambda matrix: matrix.solve(vector(), 0.1).get_flat_representation(),
    "solve-undamped": lambda matrix: matrix.solve(vector(), 0.0).get_flat_representation(),
    "solve-factored": lambda matrix: matrix.solve(vector(), 0.1, use_pi=True).get_flat_representation(),
    "inverse": lambda matrix: matrix.inverse(0.0).get_dense_tensor(),
    "product": lambda matrix: matrix.mm(kfac(1)).get_dense_tensor(),
    "product-from-the-left": lambda matrix: kfac(1).mm(matrix).get_dense_tensor(),
    "product-with-full-factors": lambda matrix: matrix.mm(kfac(1, full=True)).get_dense_tensor(),
    "product-solve": lambda matrix: matrix.mm(kfac(1)).solve(vector(), 0.0).get_flat_representation(),
    "multiple": lambda matrix: (2 * matrix).get_dense_tensor(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_diagonal_factor_acts_as_the_matrix_that_it_stands_for(operation: str) -> None:
    act = OPERATIONS[operation]
    assert relative_error(act(kfac()), act(kfac(full=True))) <= 1e-12


def test_algebra_equals_that_of_the_dense_matrix() -> None:
    matrix, v = kfac(), vector().get_flat_representation()
    dense, eye = matrix.get_dense_tensor(), torch.eye(27, dtype=torch.float64)
    assert relative_error(matrix.mv(vector()).get_flat_representation(), dense @ v) <= 1e-12
    damped = matrix.solve(vector(), 0.1).get_flat_representation()
    assert relative_error((dense + 0.1 * eye) @ damped, v) <= 1e-12
    assert relative_error(matrix.inverse(0.0).get_dense_tensor() @ dense, eye) <= 1e-12
    assert relative_error(matrix.frobenius_norm(), dense.norm()) <= 1e-12


def test_the_algebra_is_differentiable_with_respect_to_the_vector() -> None:
    flat = vector().get_flat_representation().requires_grad_()
    kfac().vTMv(PVector(LAYERS, vector_repr=flat)).backward()  # type: ignore[no-untyped-call]
    assert relative_error(flat.grad, 2 * kfac().get_dense_tensor() @ flat.detach()) <= 1e-12  # type: ignore[arg-type]


def test_a_large_table_needs_no_more_than_its_rows() -> None:
    rows = 300_000  # a factor of that order would take 720 GB
    model, x = classifier(rows, padding_idx=0), tokens(rows)
    matrix = FIM(model, x, PMatKFAC)
    v = vector(matrix.layer_collection)
    assert matrix.data["0"].inputs.shape == (1, rows)
    assert relative_error(matrix.get_diag().sum(), matrix.trace()) <= 1e-12
    x_ = matrix.solve(v, 0.1)
    assert relative_error((matrix.mv(x_) + 0.1 * x_).get_flat_representation(), v.get_flat_representation()) <= 1e-10
    squared = matrix.mm(matrix)
    assert relative_error(squared.trace(), matrix.frobenius_norm().square()) <= 1e-12
    assert (
        relative_error(squared.mv(v).get_flat_representation(), matrix.mv(matrix.mv(v)).get_flat_representation())
        <= 1e-12
    )


def test_rows_that_never_occurred_make_it_singular() -> None:
    matrix = FIM(classifier(), tokens().clamp(max=4), PMatKFAC)
    for refused in (matrix, matrix.mm(matrix)):
        with pytest.raises(NotPositiveDefiniteError, match="layer '0'"):
            refused.solve(vector(matrix.layer_collection), 0.0)
    with pytest.raises(NotPositiveDefiniteError, match="the block of layer '0'"):
        matrix.inverse(0.0)


def test_sums_are_stored_and_merged() -> None:
    model, x = classifier(), tokens()
    whole = FIM(model, x, PMatKFAC)
    assert whole.generator is not None
    halves = [PMatKFAC.accumulator(whole.layer_collection) for _ in range(2)]
    for sums, part in zip(halves, (x[:2], x[2:]), strict=True):
        sums.begin_pass(0)
        for batch in whole.generator.stream([part]):
            sums.update(batch)
    restored = PMatKFAC.accumulator(whole.layer_collection)
    restored.load_state_dict(halves[0].state_dict())
    restored.merge(halves[1])
    found = PMatKFAC(data=restored.finalize(), layer_collection=whole.layer_collection)
    assert relative_error(found.get_dense_tensor(), whole.get_dense_tensor()) <= 1e-12


def test_a_diagonal_of_another_length_is_refused() -> None:
    data = dict(kfac().data)
    data["table"] = replace(data["table"], inputs=torch.ones(1, 4))
    with pytest.raises(
        ShapeError, match=r"shapes \(1, 4\) and \(1, 3, 3\); expected \(q, A, A\), or \(q, A\) for a diagonal"
    ):
        PMatKFAC(data=data, layer_collection=LAYERS)


def test_normalisations_have_no_kronecker_factors() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    with pytest.raises(
        UnsupportedOperationError, match="layer '1': ScaleShiftJacobian .* use the diagonal or the dense rep"
    ):
        FIM(model, torch.randn(5, 3, dtype=torch.float64), PMatKFAC)


def test_a_table_tied_to_the_output_head_has_no_kronecker_factors() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.head(torch.tanh(self.table(x)).sum(1))
            return outputs

    with pytest.raises(UnsupportedOperationError, match="layer 'table': SumJacobian is not a sum of Kronecker prod"):
        FIM(Tied().double(), tokens(5), PMatKFAC)
