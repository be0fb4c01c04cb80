"""Fisher matrices of every kind of output, against plain autograd and sums over all targets."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM
from transformers.tokenization_utils_base import BatchEncoding

from nngeo import (
    FIM,
    ClassifLogits,
    EmpiricalFIM,
    FIM_MonteCarlo,
    GaussianLikelihood,
    GramMatrix,
    HooksGenerator,
    Likelihood,
    OutputMetric,
    PMat,
    PVector,
    SegmentationLogits,
    random_pvector,
)
from nngeo_core.plugins import registry
from nngeo_core.testing import output_jacobian, relative_error

VOCABULARY, T = 7, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=8, n_embd=4, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).double().eval()


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8, attn_implementation="eager", pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def rows_of(model: nn.Module, outputs: Tensor, directions: Tensor) -> Tensor:
    """Directions' gradients, shape (c, d)."""
    parameters = list(model.parameters())
    found = []
    for direction in directions:
        parts = torch.autograd.grad(
            outputs, parameters, direction, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def softmax_roots(logits: Tensor) -> Tensor:
    """For logits (positions, K) the directions (positions K, positions, K), each at one position."""
    p, k = logits.detach().softmax(1), logits.shape[1]
    eye = torch.eye(k, dtype=p.dtype)
    found = []
    for t in range(len(p)):
        for j in range(k):
            direction = torch.zeros_like(p)
            direction[t] = p[t, j].sqrt() * (eye[j] - p[t])
            found.append(direction)
    return torch.stack(found)


def flat(F: PMat, model: nn.Module) -> Tensor:
    """The dense matrix in the order of model.parameters()."""
    assert F.generator is not None
    layers = F.layer_collection
    names = [name for held in layers.parameter_names.values() for name in held]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    starts, start = {}, 0
    for name in names:
        starts[name] = start
        start += sizes[name]
    order = torch.cat([torch.arange(starts[n], starts[n] + sizes[n]) for n, _ in model.named_parameters()])
    return F.get_dense_tensor()[order][:, order]


@pytest.mark.parametrize(
    ("build", "side", "dtype", "limit"),
    [
        (gpt2, "right", torch.float64, 1e-10),
        (gpt2, "left", torch.float64, 1e-10),
        (llama, "right", torch.float64, 1e-6),
        (llama, "left", torch.float32, 1e-4),  # in float64 its own outputs are NaN where a row has nothing to attend to
    ],
    ids=["gpt2-right", "gpt2-left", "llama-right", "llama-left"],
)
def test_a_causal_language_model_with_ragged_padding_is_the_loop_over_single_sequences(
    build: Callable[[], nn.Module], side: str, dtype: torch.dtype, limit: float
) -> None:
    torch.manual_seed(0)
    model, lengths = build().to(dtype), [5, 3, 2]
    tokens = torch.zeros(3, T, dtype=torch.int64)
    padding = torch.zeros(3, T, dtype=torch.int64)
    expected = 0
    for i, length in enumerate(lengths):
        sequence = torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(i))
        place = slice(0, length) if side == "right" else slice(T - length, T)
        tokens[i, place], padding[i, place] = sequence, 1
        logits = model(input_ids=sequence[None]).logits[0, :-1]
        rows = rows_of(model, logits, softmax_roots(logits))
        expected = expected + rows.T @ rows / 3
    batch = BatchEncoding({"input_ids": tokens, "attention_mask": padding})
    if side == "left":
        batch["position_ids"] = (padding.cumsum(1) - 1).clamp(min=0)
    dense, diag = FIM(model, batch, ["dense", "diag"], VOCABULARY, "causal_lm_logits")
    assert relative_error(flat(dense, model), expected) <= limit
    assert relative_error(diag.get_diag(), dense.get_diag()) <= max(1e-10, limit / 10)
    v = draw(dense.size()[0], seed=5).to(dtype)
    vector = PVector(dense.layer_collection, vector_repr=v)
    product = dense.generator.product(vector, [batch]).get_flat_representation()
    assert relative_error(product, dense.get_dense_tensor() @ v) <= max(1e-6, limit)


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 3, 3, padding=1)
        self.inner = nn.Conv2d(3, 3, 2, stride=2)
        self.up = nn.ConvTranspose2d(3, 3, 2, stride=2)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x).tanh()
        return self.head(torch.cat((first, self.up(self.inner(first).tanh())), 1))


def test_a_segmentation_leaves_out_ignored_pixels() -> None:
    torch.manual_seed(0)
    model, x = Segmenter().double(), draw(3, 2, 4, 4)
    labels = torch.randint(0, 3, (3, 4, 4), generator=torch.Generator().manual_seed(1))
    labels[torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.4] = -100
    labels[2] = -100
    expected = 0
    for image, wanted in zip(x, labels, strict=True):
        logits = model(image[None])[0].flatten(1).T[wanted.flatten() != -100]
        if len(logits):
            rows = rows_of(model, logits, softmax_roots(logits))
            expected = expected + rows.T @ rows / 3
    dense, diag, kfac = FIM(model, (x, labels), ["dense", "diag", "kfac"], 3, "segmentation_logits")
    assert relative_error(flat(dense, model), expected) <= 1e-10
    assert relative_error(diag.get_diag(), dense.get_diag()) <= 1e-10
    everything = FIM(model, x, "dense", 3, "segmentation_logits")
    assert everything.trace() > dense.trace()
    keep = (labels != -100).flatten(1)
    patches = nn.functional.unfold(x, 3, padding=1).transpose(1, 2)[keep]
    a = torch.cat((patches, torch.ones(len(patches), 1, dtype=torch.float64)), 1)
    assert relative_error(kfac.data["down"].inputs[0], a.T @ a / 3) <= 1e-12


@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_the_empirical_fisher_matrix_of_a_segmentation(ignore_index: int) -> None:
    torch.manual_seed(0)
    model, x = Segmenter().double(), draw(3, 2, 4, 4)
    labels = torch.randint(0, 3, (3, 4, 4), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = labels[2] = ignore_index
    expected = 0
    for image, wanted in zip(x, labels, strict=True):
        value = nn.functional.cross_entropy(
            model(image[None]), wanted[None], ignore_index=ignore_index, reduction="sum"
        )
        row = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])
        expected = expected + torch.outer(row, row) / 3
    found = EmpiricalFIM(model, (x, labels), "dense", variant=SegmentationLogits(ignore_index))
    assert relative_error(flat(found, model), expected) <= 1e-10


def all_likelihoods() -> list[tuple[str | Likelihood, Tensor]]:
    return [
        ("classif_logits", draw(5, 4)),
        ("classif_logsoftmax", draw(5, 4)),
        ("classif_binary_logits", draw(5, 1)),
        ("multilabel_logits", draw(5, 4)),
        ("regression", draw(5, 4)),
        (GaussianLikelihood(torch.tensor([1.0, 2.0, 0.5, 3.0])), draw(5, 4)),
        ("poisson", draw(5, 4)),
    ]


@pytest.mark.parametrize("place", range(7))
def test_every_representation_and_product_of_every_likelihood(place: int) -> None:
    variant, target = all_likelihoods()[place]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, target.shape[1]))
    if variant == "classif_logsoftmax":
        model.append(nn.LogSoftmax(1))
    model, x = model.double(), draw(5, 3, seed=3)
    likelihood = registry.likelihood(variant)() if isinstance(variant, str) else variant
    c = target.shape[1]
    units = torch.eye(c, dtype=torch.float64)
    expected = 0
    for example in x.split(1):
        outputs = model(example)
        jacobian = rows_of(model, outputs, units[:, None])
        metric = torch.stack([likelihood.metric(outputs.detach(), unit[None])[0] for unit in units])
        expected = expected + jacobian.T @ metric @ jacobian / 5
    dense, diag, kfac = FIM(model, x.split(2), ["dense", "diag", "kfac"], c, variant)
    assert relative_error(flat(dense, model), expected) <= 1e-10
    assert relative_error(diag.get_diag(), dense.get_diag()) <= 1e-10
    assert kfac.trace() > 0
    v = random_pvector(dense.layer_collection, dtype=torch.float64)
    found = dense.generator.product(v, x.split(2)).get_flat_representation()
    assert relative_error(found, dense.mv(v).get_flat_representation()) <= 1e-10


def test_outputs_without_an_axis_for_values() -> None:
    """A model that returns (n,): one logit for each example."""
    model, x = nn.Linear(3, 1).double(), draw(5, 3)
    column = FIM(model, x, "dense", 1, "classif_binary_logits")
    found = FIM(model, x, "dense", 1, "classif_binary_logits", function=lambda x: model(x)[:, 0])
    assert relative_error(found.get_dense_tensor(), column.get_dense_tensor()) <= 1e-14


@pytest.mark.parametrize("variant", ["segmentation_logits_random_signs", "causal_lm_logits_random_signs"])
def test_random_signs_by_name(variant: str) -> None:
    model = Segmenter().double()
    function: Any = None if variant.startswith("seg") else lambda x: model(x).flatten(2).transpose(1, 2)
    exact = "segmentation_logits" if variant.startswith("seg") else "causal_lm_logits"
    x = draw(4, 2, 4, 4)
    if not variant.startswith("seg"):
        tokens = torch.zeros(4, 16)
        batch: Any = {"input_ids": tokens, "image": x}
        function = lambda batch: model(batch["image"]).flatten(2).transpose(1, 2)  # noqa: E731
    else:
        batch = x
    expected = FIM(model, batch, "diag", 3, exact, function=function).trace()
    found = torch.stack([FIM(model, batch, "diag", 3, variant, function=function).trace() for _ in range(30)])
    assert (found.mean() - expected).abs() <= 5 * found.std() / 30**0.5
    assert found.std() > 0


def test_a_wrong_number_of_labels_is_refused() -> None:
    model = Segmenter().double()
    with pytest.raises(ValueError, match="labels and outputs must have the same positions"):
        FIM(model, (draw(3, 2, 4, 4), torch.zeros(3, 2, 2, dtype=torch.int64)), "diag", 3, "segmentation_logits")


def test_classif_logits_names_the_kind_that_fits() -> None:
    with pytest.raises(ValueError, match="'segmentation_logits'"):
        FIM(Segmenter().double(), draw(3, 2, 4, 4), "diag", 3, ClassifLogits())


@pytest.mark.parametrize("variant", ["classif_logits", "multilabel_logits"])
def test_confident_logits_in_float32(variant: str) -> None:
    """Logits of standard deviation 100: probabilities of 1 and 1e-40 side by side."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 6, bias=False), draw(50, 4, seed=1)
    with torch.no_grad():
        model.weight.copy_(65 * draw(6, 4, seed=2))
    exact = FIM(copy.deepcopy(model).double(), x.float().double(), ["dense", "diag", "kfac"], variant=variant)
    found = FIM(model, x.float(), ["dense", "diag", "kfac"], variant=variant)
    assert model(x.float()).detach().std() > 100
    for one, other in zip(found, exact, strict=True):
        assert relative_error(one.get_dense_tensor().double(), other.get_dense_tensor()) <= 1e-4
    v = random_pvector(found[0].layer_collection, dtype=torch.float32)
    product = found[0].generator.product(v, x.float())
    assert relative_error(product.get_flat_representation(), found[0].mv(v).get_flat_representation()) <= 1e-3


def test_fifty_thousand_classes() -> None:
    """A c x c matrix would take 20 GB in float64. The metric of one example is (diag(p) - p p^T) (x) x x^T."""
    torch.manual_seed(0)
    model, x = nn.Linear(2, 50_000, bias=False).double(), draw(2, 2)
    F = FIM_MonteCarlo(model, x, "diag", trials=3, generator=torch.Generator().manual_seed(0))
    v = random_pvector(F.layer_collection, dtype=torch.float64)
    rows = v.get_flat_representation().view(50_000, 2)
    expected = torch.zeros_like(rows)
    for example in x:
        p, change = (model.weight @ example).softmax(0).detach(), rows @ example
        expected += torch.outer(p * (change - p @ change), example) / 2
    exact = HooksGenerator(model, "classif_logits").product(v, x).get_flat_representation()
    assert relative_error(exact.view(50_000, 2), expected) <= 1e-12
    p = (x @ model.weight.T).softmax(1).detach()
    per_trial = (p * (1 - p)).sum(1) @ x.square().sum(1) / 2
    assert (F.trace() - per_trial).abs() <= 0.05 * per_trial  # |e_y - p|^2 is nearly 1 whatever the class drawn


def test_a_metric_of_the_users() -> None:
    """A model that predicts a direction by two angles, compared by the length of arcs on the sphere.

    The metric of the sphere in (polar, azimuth) is diag(1, sin^2 polar), pulled back to the parameters.
    """
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), draw(6, 3)

    def sphere(angles: Tensor) -> Tensor:
        return torch.diag_embed(torch.stack([torch.ones_like(angles[:, 0]), angles[:, 0].sin().square()], 1))

    def points(x: Tensor) -> Tensor:
        polar, azimuth = model(x).unbind(1)
        return torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], 1)

    arcs = OutputMetric(sphere, GaussianLikelihood())
    dense, diag, kfac = FIM(model, x, ["dense", "diag", "kfac"], variant=arcs)
    in_space = FIM(
        model, x, "dense", variant="regression", function=points
    )  # the sphere's metric is that of space around it
    assert relative_error(dense.get_dense_tensor(), in_space.get_dense_tensor()) <= 1e-12
    assert relative_error(diag.get_diag(), dense.get_diag()) <= 1e-12
    assert kfac.trace() > 0
    v = random_pvector(dense.layer_collection, dtype=torch.float64)
    product = dense.generator.product(v, x).get_flat_representation()
    assert relative_error(product, dense.mv(v).get_flat_representation()) <= 1e-12
    hyperbolic = OutputMetric(
        lambda f: torch.diag(torch.tensor([1.0, -1.0])).expand(len(f), 2, 2), GaussianLikelihood()
    )
    signed = FIM(model, x, "dense", variant=hyperbolic)
    jacobian = output_jacobian(model, x, [name for name, _ in model.named_parameters()])
    minkowski = (jacobian[0].T @ jacobian[0] - jacobian[1].T @ jacobian[1]) / 6
    assert relative_error(flat(signed, model), minkowski) <= 1e-12


@pytest.mark.parametrize("n", [1, 15, 16, 40])
@pytest.mark.parametrize("variant", ["classif_binary_logits", "regression", "poisson"])
def test_one_output_without_an_axis_of_its_own(variant: str, n: int) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(4, 1).double(), torch.randn(n, 4).double()
    model = nn.Sequential(linear, nn.Flatten(0))
    for representation in ("dense", "diag", "implicit"):
        found = FIM(model, x, representation, variant=variant)
        expected = FIM(linear, x, representation, variant=variant)
        assert relative_error(found.get_diag(), expected.get_diag()) <= 1e-12
    kernels = [GramMatrix(one, x, "dense").get_dense_tensor() for one in (model, linear)]
    assert relative_error(*kernels) <= 1e-12


def test_products_are_compared_where_positions_count() -> None:
    """Rows of a left-padded batch whose every key is masked have no right derivative in torch; they do not count."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, ffn_dim=6, max_position_embeddings=12,
        word_embed_proj_dim=4, dropout=0.0,
    )  # fmt: skip
    model = OPTForCausalLM(config).double().eval()
    batch = {"input_ids": torch.randint(3, 7, (5, 4)), "attention_mask": torch.ones(5, 4, dtype=torch.int64)}
    batch["attention_mask"][1, :2] = 0
    dense, implicit = FIM(model, batch, ["dense", "implicit"], variant="causal_lm_logits")
    v = random_pvector(dense.layer_collection, dtype=torch.float64)
    assert relative_error(implicit.vTMv(v), dense.vTMv(v)) <= 1e-10
    assert relative_error(implicit.mv(v).get_flat_representation(), dense.mv(v).get_flat_representation()) <= 1e-10
