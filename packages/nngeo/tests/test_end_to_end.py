"""A small convolutional net on real digits: what a user does with a Fisher matrix."""

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nngeo import (
    FIM,
    HooksGenerator,
    LayerCollection,
    LayerCollectionMismatchError,
    PMat,
    PMatDense,
    PMatDiag,
    PMatKFAC,
    PVector,
    random_pvector,
)
from nngeo_core.testing import fisher, relative_error

N = 96
KINDS = ["dense", "diag", "kfac"]


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images[:N], dtype=torch.float64).view(-1, 1, 8, 8) / 16
    return TensorDataset(pixels, torch.tensor(labels[:N]))


@pytest.fixture
def model(data: TensorDataset) -> nn.Module:
    """Trained a little, so that its outputs differ from class to class."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(5, 10),
    ]
    net = nn.Sequential(*layers).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    pixels, labels = data.tensors
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(pixels), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


@pytest.fixture
def loader(data: TensorDataset) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data, batch_size=25, shuffle=True)


def _vector(layers: LayerCollection, seed: int = 0) -> PVector:
    return random_pvector(layers, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_all_representations_of_one_sweep_fit_together(
    model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]
) -> None:
    dense, diag, kfac = FIM(model, loader, KINDS, n_output=10)
    assert (dense.n_examples, diag.n_examples, kfac.n_examples) == (N, N, N)
    matrix = dense.get_dense_tensor()
    assert relative_error(dense.get_diag(), diag.get_diag()) <= 1e-12
    assert relative_error(dense.trace(), matrix.diagonal().sum()) <= 1e-12
    assert relative_error(diag.trace(), dense.trace()) <= 1e-12
    assert relative_error(dense.frobenius_norm().square(), matrix.square().sum()) <= 1e-12
    spectrum = torch.linalg.eigvalsh(matrix)
    assert spectrum.min() >= -1e-12 * spectrum.max()
    assert relative_error(kfac.get_diag().sum(), kfac.trace()) <= 1e-12
    for matrix_of_kind in (dense, diag, kfac):
        v = _vector(dense.layer_collection)
        assert matrix_of_kind.vTMv(v) > 0
        assert relative_error(matrix_of_kind.vTMv(v), v @ (matrix_of_kind @ v)) <= 1e-12


def test_the_dense_matrix_is_the_oracle_s(model: nn.Module, data: TensorDataset) -> None:
    pixels = data.tensors[0][:8]
    dense = FIM(model, pixels, PMatDense)
    names = [name for name, _ in dense.layer_collection.named_parameters(model)]
    assert relative_error(dense.get_dense_tensor(), fisher(model, pixels, names, "classif_logits")) <= 1e-12


def test_products_without_a_matrix_are_the_same(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> None:
    dense = FIM(model, loader, PMatDense)
    v = _vector(dense.layer_collection)
    assert dense.generator is not None
    product = dense.generator.product(v, loader)
    assert relative_error(product.get_flat_representation(), dense.mv(v).get_flat_representation()) <= 1e-12


def test_kfac_of_a_layer_without_shared_positions_has_its_factors(model: nn.Module, data: TensorDataset) -> None:
    pixels = data.tensors[0]
    kfac = FIM(model, pixels, PMatKFAC)
    with torch.no_grad():
        features = torch.cat([model[:-1](pixels), torch.ones(N, 1, dtype=torch.float64)], 1)  # type: ignore[index]
        p = model(pixels).softmax(1)
    head = kfac.data["5"]
    assert relative_error(head.inputs[0], features.T @ features / N) <= 1e-12
    assert relative_error(head.outputs[0], p.mean(0).diag() - p.T @ p / N) <= 1e-12


def test_the_model_and_the_random_state_are_untouched(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    FIM(model, loader, KINDS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_progress_bar_for_every_pass(
    model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], capfd: pytest.CaptureFixture[str]
) -> None:
    FIM(model, loader, "kfac", progress=True)
    shown = capfd.readouterr().err
    assert "pass 1/1" in shown
    assert "4/4" in shown  # batches
    FIM(model, loader, "kfac")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_elastic_weight_consolidation(model: nn.Module, data: TensorDataset, kind: str) -> None:
    """Kirkpatrick et al. (2017): the penalty (w - w_a)^T F (w - w_a) pulls the model back to w_a."""
    F = FIM(model, data.tensors[0], kind)
    w_a = PVector.from_model(model).detach().clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    penalty = F.vTMv(PVector.from_model(model) - w_a)
    penalty.backward()
    change = (PVector.from_model(model) - w_a).detach()
    assert penalty.item() > 0
    expected = 2 * F.mv(change)
    found = PVector.from_model_grad(model)
    assert relative_error(found.get_flat_representation(), expected.get_flat_representation()) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("value", "gradient"),
    [
        (lambda F, w, u: F.mv(w).dot(u), lambda F, w, u: F.mv(u)),
        (lambda F, w, u: (F @ w) @ u, lambda F, w, u: F.mv(u)),
        (lambda F, w, u: w.dot(u), lambda F, w, u: u),
        (lambda F, w, u: w.norm(), lambda F, w, u: w / w.norm()),
        (lambda F, w, u: F.solve(w, 0.1).dot(u), lambda F, w, u: F.solve(u, 0.1)),
    ],
    ids=["mv-dot", "matmul", "dot", "norm", "solve"],
)
def test_functions_of_the_parameters_reach_the_model(
    model: nn.Module,
    data: TensorDataset,
    kind: str,
    value: Callable[[PMat, PVector, PVector], Tensor],
    gradient: Callable[[PMat, PVector, PVector], PVector],
) -> None:
    F = FIM(model, data.tensors[0][:20], kind)
    u = _vector(F.layer_collection)
    value(F, PVector.from_model(model), u).backward()
    expected = gradient(F, PVector.from_model(model).detach(), u).get_flat_representation()
    assert relative_error(PVector.from_model_grad(model).get_flat_representation(), expected) <= 1e-10


@pytest.mark.parametrize("chosen", [("0",), ("2",), ("5",), ("0", "5"), ("5", "0")], ids="-".join)
def test_a_matrix_over_some_layers_is_a_block_of_the_whole(
    model: nn.Module, data: TensorDataset, chosen: tuple[str, ...]
) -> None:
    pixels = data.tensors[0][:20]
    whole = LayerCollection.from_model(model)
    layers = LayerCollection()
    for path in chosen:
        layers.add_layer_from_model(model, model.get_submodule(path))
    place = torch.cat([torch.arange(whole.numel())[whole.slices()[path]] for path in chosen])
    for kind in KINDS:
        part, full = (FIM(model, pixels, kind, layer_collection=some) for some in (layers, whole))
        assert relative_error(part.get_dense_tensor(), full.get_dense_tensor()[place][:, place]) <= 1e-12
        v = _vector(whole)
        with pytest.raises(LayerCollectionMismatchError):
            part.mv(v)
        restricted = part.mv(v.restrict(layers)).get_flat_representation()
        expected = part.get_dense_tensor() @ v.get_flat_representation()[place]
        assert relative_error(restricted, expected) <= 1e-12
    w = PVector.from_model(model, layers)
    assert w.size() == (layers.numel(),)
    FIM(model, pixels, PMatDiag, layer_collection=layers).vTMv(w).backward()
    reached = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == set(chosen)


def test_a_natural_gradient_step_lowers_the_loss(model: nn.Module, data: TensorDataset) -> None:
    pixels, labels = data.tensors
    for kind in KINDS:
        loss = nn.functional.cross_entropy(model(pixels), labels)
        model.zero_grad()
        loss.backward()
        F, gradient = FIM(model, pixels, kind), PVector.from_model_grad(model)
        step = -0.1 * F.solve(gradient, regul=1e-2)
        step.add_to_model(model)
        with torch.no_grad():
            assert nn.functional.cross_entropy(model(pixels), labels) < loss


def test_a_matrix_made_under_inference_mode_takes_part_in_autograd() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    with torch.inference_mode():
        matrices = [FIM(model, x, "diag"), PMatDense(HooksGenerator(model, "classif_logits"), examples=x)]
    for matrix in matrices:
        model.zero_grad()
        matrix.vTMv(PVector.from_model(model)).backward()
        assert model.weight.grad is not None and model.weight.grad.norm() > 0


def test_products_refuse_what_is_no_vector_and_digits_that_would_be_lost() -> None:
    model = nn.Linear(3, 2)
    generator = HooksGenerator(model, "classif_logits")
    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match="expected a PVector, got Tensor"):
        generator.product(torch.ones(8), x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected an FVector, got Tensor"):
        generator.vjp(torch.ones(2, 4), x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the vector is torch.float64 and the matrix torch.float32; use v.to"):
        generator.product(PVector.from_model(model).detach().to(dtype=torch.float64), x)
