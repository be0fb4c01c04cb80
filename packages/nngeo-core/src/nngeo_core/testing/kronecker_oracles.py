"""Reference values of Kronecker-factored approximations, formed explicitly; letters and conventions as in `oracles`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nngeo_core.testing.oracles import _positions, kronecker_block

__all__ = ["ekfac_block", "factors_of_parameters", "kfac_reduce_factors", "quasi_diagonal", "reduced_positions"]


def factors_of_parameters(
    oracle: Callable[..., tuple[Tensor, Tensor]], model: nn.Module, inputs: Tensor, names: Sequence[str], variant: str
) -> tuple[Tensor, Tensor]:
    """Kronecker factors of a layer that is made of these parameters: without what belongs to ones that it lacks.

    Args:
        oracle: `kfac_factors` or `kfac_reduce_factors`.
        model: any module.
        inputs: (n, ...), examples first.
        names: of a weight, of the bias that goes with it, or of both.
        variant: as for `fisher_metric`.

    Returns:
        A and G, A without the bias's 1 if there is a weight alone, and only it if there is a bias alone.

    Example:
        >>> model, inputs = nn.Linear(1, 1).double(), torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> factors_of_parameters(kfac_reduce_factors, nn.Sequential(model), inputs, ["0.weight"], "regression")[0].tolist()
        [[[5.0]]]
    """
    parameters = dict(model.named_parameters())
    owners = {
        path: module
        for path, module in model.named_modules()
        if any(own is parameters[names[0]] for own in module.parameters(recurse=False))
    }
    a, g = oracle(model, inputs, list(owners), variant)
    weight = next(iter(owners.values())).weight
    has_one = isinstance(weight, Tensor) and a.shape[-1] != weight[0].numel()
    kinds = {name.rpartition(".")[2] for name in names}
    if kinds == {"bias"}:
        return a[:, -1:, -1:], g
    return (a[:, :-1, :-1] if has_one and "bias" not in kinds else a), g


def kfac_reduce_factors(
    model: nn.Module,
    inputs: Tensor,
    layer: str | Sequence[str],
    variant: str,
    function: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Kronecker factors of one layer whose positions are made one first, from the definition.

    A = (1/n) sum_n mbar mbar^T and G = (1/n) sum_n sum_k t t^T, where mbar is the mean of what the layer reads at its
    positions, with 1 appended when it has a bias, and t the sum over positions of the derivative of direction k with respect
    to the layer's output.

    Args:
        model: any module.
        inputs: (n, ...), examples first.
        layer: as for `kfac_factors`.
        variant: as for `fisher_metric`.
        function: maps inputs to outputs (n, c); `model` itself by default.

    Returns:
        A (q, a + 1, a + 1), or (q, a, a) without a bias, and G (q, g, g).

    Source:
        Eschenhagen, Immer, Turner, Schneider & Hennig (2023), "Kronecker-factored approximate curvature for modern neural
        network architectures".

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(), nn.AvgPool1d(2)).double()
        >>> inputs = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
        >>> a_factor, g_factor = kfac_reduce_factors(model, inputs, "0", "regression")
        >>> a_factor.tolist(), g_factor.tolist()
        ([[[4.0]]], [[[1.0]]])
    """
    mean, total = reduced_positions(model, inputs, layer, variant, function)
    a_factor = torch.einsum("nqi,nqj->qij", mean, mean) / len(inputs)
    return a_factor, torch.einsum("nkqo,nkqp->qop", total, total) / len(inputs)


def reduced_positions(
    model: nn.Module,
    inputs: Tensor,
    layer: str | Sequence[str],
    variant: str,
    function: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean of what a layer reads at its positions, and the sum of the derivatives there, for each example.

    Takes the arguments of `kfac_reduce_factors`.

    Returns:
        mbar (n, q, a + 1), or (n, q, a) without a bias, and t (n, k, q, g).

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Flatten(), nn.AvgPool1d(2)).double()
        >>> inputs = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
        >>> [part.tolist() for part in reduced_positions(model, inputs, "0", "regression")]
        [[[[2.0, 1.0]]], [[[[1.0]]]]]
    """
    modules = [model.get_submodule(path) for path in ([layer] if isinstance(layer, str) else layer)]
    biases = {id(module.bias): module.bias for module in modules}
    append_one = len(biases) == 1 and None not in biases.values()
    means, totals = [], []
    for example in inputs.unsqueeze(1):
        a, g = _positions(model if function is None else function, example, modules, variant)
        mean = a.mean(dim=0)
        means.append(torch.cat([mean, torch.ones_like(mean[:, :1])], dim=-1) if append_one else mean)
        totals.append(g.sum(dim=1))
    return torch.stack(means), torch.stack(totals)


def ekfac_block(block: Tensor, a_factor: Tensor, g_factor: Tensor, has_bias: bool) -> Tensor:
    """A layer's block of F with all but its diagonal removed in the eigenbasis of its Kronecker factors.

    U diag(U^T F U) U^T for the orthonormal U = U_G (x) U_A of each group, in the layer's flat order. Where eigenvalues of a
    factor other than zero coincide, U and the result are one choice of several.

    Args:
        block: (d, d), the layer's block of F.
        a_factor: (q, a + 1, a + 1) with a bias, (q, a, a) without.
        g_factor: (q, g, g).
        has_bias: whether the last row and column of A belong to a bias.

    Returns:
        (d, d).

    Source:
        George, Laurent, Bouthillier, Ballas & Vincent (2018), "Fast approximate natural gradient descent in a
        Kronecker-factored eigenbasis".

    Example:
        >>> block = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> ekfac_block(block, torch.diag(torch.tensor([1.0, 4.0]))[None], torch.ones(1, 1, 1), has_bias=False).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    u = kronecker_block(torch.linalg.eigh(a_factor)[1], torch.linalg.eigh(g_factor)[1], has_bias)
    return u * (u.T @ block @ u).diagonal() @ u.T


def quasi_diagonal(block: Tensor, bias_of: Sequence[int]) -> Tensor:
    """A layer's block of F with only its diagonal and the entries between weights and the bias of their output.

    Args:
        block: (d, d).
        bias_of: for the first parameters, the place of the bias that goes with each; none of the rest has one.

    Returns:
        (d, d).

    Example:
        >>> quasi_diagonal(torch.ones(3, 3), [2, 2]).tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    kept = torch.eye(len(block), dtype=torch.bool)
    for weight, bias in enumerate(bias_of):
        kept[weight, bias] = kept[bias, weight] = True
    return block.where(kept, 0)
