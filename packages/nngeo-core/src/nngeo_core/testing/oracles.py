"""Reference values from plain autograd, formed explicitly and slowly; nothing here uses the rest of the library.

Letters: n examples, c outputs, d parameters, k output directions, s shared positions, q groups, a and g the widths of a
layer's input and output. Each example goes through the model alone, as a batch of one: a model that mixes its examples
then disagrees with the library instead of agreeing by accident. Results have the dtype of the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "block_diagonal",
    "fisher",
    "fisher_directions",
    "fisher_metric",
    "kfac_factors",
    "kronecker_block",
    "output_jacobian",
    "plain_gradient",
    "relative_error",
]

Function = Callable[[Tensor], Tensor]
_CATEGORICAL = ("classif_logits", "classif_logsoftmax")


@contextmanager
def _swapped(model: nn.Module, leaves: Mapping[str, Tensor]) -> Iterator[None]:
    """Put leaves in every place of the parameters they are named after, each place once, and then the parameters back."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    places = [(module._parameters, key, p) for module in model.modules() for key, p in module._parameters.items()]
    try:
        for held, key, parameter in places:
            held[key] = leaves.get(names.get(parameter, ""), parameter)  # type: ignore[arg-type, assignment]
        yield
    finally:
        for held, key, parameter in places:
            held[key] = parameter


def _leaves(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    unknown = [name for name in names if name not in parameters]
    if unknown or not names:
        raise ValueError(f"names are {list(names)}; expected some of model.named_parameters(): {list(parameters)}")
    return {name: parameters[name].detach().clone().requires_grad_() for name in names}


def output_jacobian(model: nn.Module, inputs: Tensor, names: Sequence[str], function: Function | None = None) -> Tensor:
    """Derivative of every output of every example with respect to the named parameters.

    J[c, n] = d f(x_n)_c / d theta, one `torch.autograd.grad` for each output of each example.

    Args:
        model: any module; frozen parameters are differentiated too, tied ones through all their uses.
        inputs: (n, ...), examples first.
        names: names from `model.named_parameters()`; their order is the flat order, each parameter row-major.
        function: maps inputs (n, ...) to outputs (n, ...); `model` itself by default. It may only close over `model`.

    Returns:
        (c, n, d), with c the product of the output axes after the first.

    Raises:
        ValueError: if `names` is empty or holds a name the model does not have.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1).double()
        >>> inputs = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        >>> output_jacobian(model, inputs, ["bias", "weight"]).tolist()
        [[[1.0, 3.0, 4.0]]]
    """
    leaves = _leaves(model, names)
    rows = []
    with torch.enable_grad(), _swapped(model, leaves):
        for example in inputs.unsqueeze(1):
            outputs = (model if function is None else function)(example).flatten(1)[0]
            rows.append(torch.stack([_flat_gradient(output, leaves) for output in outputs]))
    return torch.stack(rows, dim=1)


def plain_gradient(
    model: nn.Module, inputs: Tensor, names: Sequence[str], cotangent: Tensor, function: Function | None = None
) -> Tensor:
    """Gradient of sum_n sum_c w[n, c] f(x_n)_c from one backward pass over all examples together.

    Args:
        model: any module.
        inputs: (n, ...), examples first.
        names: names from `model.named_parameters()`, in flat order.
        cotangent: w, of n rows; its axes after the first are flattened as those of the outputs are.
        function: maps inputs to outputs; `model` itself by default.

    Returns:
        (d,), summed over examples, not averaged.

    Raises:
        ValueError: if `names` is empty or holds a name the model does not have.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1).double()
        >>> inputs = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
        >>> plain_gradient(model, inputs, ["weight"], torch.tensor([[1.0], [2.0]])).tolist()
        [5.0, 4.0]
    """
    leaves = _leaves(model, names)
    with torch.enable_grad(), _swapped(model, leaves):
        outputs = (model if function is None else function)(inputs).flatten(1)
        return _flat_gradient((outputs * cotangent.flatten(1)).sum(), leaves)


def _flat_gradient(scalar: Tensor, leaves: dict[str, Tensor]) -> Tensor:
    gradients = torch.autograd.grad(scalar, list(leaves.values()), retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def fisher_metric(outputs: Tensor, variant: str) -> Tensor:
    """Fisher information of the predicted distribution with respect to the outputs, L.

    Args:
        outputs: (n, c).
        variant: `"classif_logits"` or `"classif_logsoftmax"` for diag(p) - p p^T with p the softmax of the outputs,
            `"regression"` for the identity.

    Returns:
        (n, c, c), one metric for each example.

    Raises:
        ValueError: if `variant` is another name or `outputs` has not two axes.

    Example:
        >>> import torch
        >>> fisher_metric(torch.zeros(1, 2), "classif_logits").tolist()
        [[[0.25, -0.25], [-0.25, 0.25]]]
    """
    _check_outputs(outputs, variant)
    if variant == "regression":
        return torch.eye(outputs.shape[1]).to(outputs).repeat(len(outputs), 1, 1)
    p = outputs.softmax(dim=1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def fisher_directions(outputs: Tensor, variant: str) -> Tensor:
    """Columns V of an exact square root of the metric: sum_k V[k, n] V[k, n]^T = L[n].

    Args:
        outputs: (n, c).
        variant: as for `fisher_metric`; sqrt(p_k) (e_k - p) for the categorical ones, e_k for `"regression"`.

    Returns:
        (k, n, c) with k = c.

    Raises:
        ValueError: if `variant` is another name or `outputs` has not two axes.

    Example:
        >>> import torch
        >>> fisher_directions(torch.zeros(1, 2), "regression").tolist()
        [[[1.0, 0.0]], [[0.0, 1.0]]]
    """
    _check_outputs(outputs, variant)
    identity = torch.eye(outputs.shape[1]).to(outputs)[:, None, :].repeat(1, len(outputs), 1)
    if variant == "regression":
        return identity
    p = outputs.softmax(dim=1)
    return p.T[:, :, None].sqrt() * (identity - p)


def _check_outputs(outputs: Tensor, variant: str) -> None:
    known = (*_CATEGORICAL, "regression")
    if variant not in known:
        raise ValueError(f"variant is {variant!r}; the oracles know {', '.join(map(repr, known))}")
    if outputs.dim() != 2:
        raise ValueError(f"outputs have shape {tuple(outputs.shape)}; the oracles expect (n, c)")


def fisher(
    model: nn.Module, inputs: Tensor, names: Sequence[str], variant: str, function: Function | None = None
) -> Tensor:
    """Dense Fisher information matrix, F = (1/n) sum_n J_n^T L_n J_n.

    Args:
        model: any module.
        inputs: (n, ...), examples first.
        names: names from `model.named_parameters()`, in flat order.
        variant: as for `fisher_metric`.
        function: maps inputs to outputs (n, c); `model` itself by default.

    Returns:
        (d, d), averaged over examples.

    Raises:
        ValueError: for an unknown name or variant, or outputs that are not (n, c).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1).double()
        >>> inputs = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> fisher(model, inputs, ["weight", "bias"], "regression").tolist()
        [[5.0, 2.0], [2.0, 1.0]]
    """
    jacobian = output_jacobian(model, inputs, names, function)
    with torch.no_grad():
        outputs = torch.cat([(model if function is None else function)(example) for example in inputs.unsqueeze(1)])
    metric = fisher_metric(outputs, variant)
    return torch.einsum("cni,ncb,bnj->ij", jacobian, metric, jacobian) / len(inputs)


def kfac_factors(
    model: nn.Module, inputs: Tensor, layer: str | Sequence[str], variant: str, function: Function | None = None
) -> tuple[Tensor, Tensor]:
    """Kronecker factors of one layer, from the definition.

    A = (1/n) sum_n sum_s abar abar^T and G = (1/n) sum_n (1/s) sum_s sum_k g g^T, where abar is what the layer reads at
    position s (for a convolution the patch, by channel, row and column) with 1 appended when it has a bias, and g is
    the derivative of direction k with respect to the layer's output there: autograd on a zero added to that output.
    The positions of all calls are taken together.

    Args:
        model: any module.
        inputs: (n, ...), examples first.
        layer: path of an `nn.Linear` or `nn.Conv2d` in the model, or the paths of several that share their weight
            (the 1 is then appended only if they share their bias as well).
        variant: as for `fisher_metric`.
        function: maps inputs to outputs (n, c); `model` itself by default.

    Returns:
        A (q, a + 1, a + 1), or (q, a, a) without a bias, and G (q, g, g); q = 1 except for a grouped convolution.

    Raises:
        TypeError: if the layer is of another type.
        ValueError: for an unknown variant, outputs that are not (n, c), or a layer the model did not call.

    Source:
        Grosse & Martens (2016), "A Kronecker-factored approximate Fisher matrix for convolution layers".

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1).double())
        >>> inputs = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> a_factor, g_factor = kfac_factors(model, inputs, "0", "regression")
        >>> a_factor.tolist(), g_factor.tolist()
        ([[[5.0, 2.0], [2.0, 1.0]]], [[[1.0]]])
    """
    modules = [model.get_submodule(path) for path in ([layer] if isinstance(layer, str) else layer)]
    biases = {id(module.bias): module.bias for module in modules}
    append_one = len(biases) == 1 and None not in biases.values()
    a_factors, g_factors = [], []
    for example in inputs.unsqueeze(1):
        a, g = _positions(model if function is None else function, example, modules, variant)
        if append_one:
            a = torch.cat([a, torch.ones_like(a[..., :1])], dim=-1)
        a_factors.append(torch.einsum("sqi,sqj->qij", a, a))
        g_factors.append(torch.einsum("ksqo,ksqp->qop", g, g) / len(a))
    return torch.stack(a_factors).mean(dim=0), torch.stack(g_factors).mean(dim=0)


def _positions(
    function: Function, example: Tensor, modules: Sequence[nn.Module], variant: str
) -> tuple[Tensor, Tensor]:
    """What the layers read, (s, q, a), and the derivatives at their outputs, (k, s, q, g), for one example."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def add_leaf(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        leaf = torch.zeros_like(output, requires_grad=True)
        calls.append((module, (*args, *kwargs.values())[0].detach().clone(), leaf))
        return output + leaf

    with torch.enable_grad(), ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(add_leaf, with_kwargs=True))
        outputs = function(example)
    if not calls:
        raise ValueError(f"the model did not call {', '.join(type(module).__name__ for module in modules)}")
    read = torch.cat([_patches(module, tensor) for module, tensor, _ in calls])
    leaves = [leaf for _, _, leaf in calls]
    derivatives = []
    for direction in fisher_directions(outputs.detach(), variant):
        gradients = torch.autograd.grad(outputs, leaves, direction, retain_graph=True, materialize_grads=True)
        derivatives.append(torch.cat([_by_group(call[0], g) for call, g in zip(calls, gradients, strict=True)]))
    return read, torch.stack(derivatives)


def _patches(module: nn.Module, tensor: Tensor) -> Tensor:
    """Cut the input of one example into what each position reads, (s, q, a)."""
    if isinstance(module, nn.Linear):
        return tensor.reshape(-1, 1, module.in_features)
    if not isinstance(module, nn.Conv2d):
        raise TypeError(f"layer is a {type(module).__name__}; the KFAC oracle knows nn.Linear and nn.Conv2d")
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(tensor, [*_margins(module, 1), *_margins(module, 0)], mode=mode)
    unfold = nn.Unfold(module.kernel_size, dilation=module.dilation, stride=module.stride)
    return torch.stack([unfold(channels)[0].T for channels in padded.chunk(module.groups, dim=1)], dim=1)


def _margins(module: nn.Conv2d, axis: int) -> tuple[int, int]:
    """What is padded before and after the image along an axis; "same" puts the odd one after it."""
    if isinstance(module.padding, str):
        total = module.dilation[axis] * (module.kernel_size[axis] - 1) if module.padding == "same" else 0
        return total // 2, total - total // 2
    return module.padding[axis], module.padding[axis]


def _by_group(module: nn.Module, gradient: Tensor) -> Tensor:
    """Bring the derivative at one example's output to (s, q, g)."""
    if isinstance(module, nn.Conv2d):
        return gradient[0].flatten(1).T.reshape(-1, module.groups, module.out_channels // module.groups)
    return gradient.reshape(-1, 1, gradient.shape[-1])


def kronecker_block(a_factor: Tensor, g_factor: Tensor, has_bias: bool) -> Tensor:
    """Dense block of a layer from its Kronecker factors, G (x) A for each group, in the layer's flat order.

    Args:
        a_factor: (q, a + 1, a + 1) with a bias, (q, a, a) without.
        g_factor: (q, g, g).
        has_bias: whether the last row and column of A belong to a bias.

    Returns:
        (d, d), ordered weight (row-major), then bias; zero between groups.

    Example:
        >>> import torch
        >>> a_factor, g_factor = torch.tensor([[[2.0, 3.0], [3.0, 5.0]]]), torch.eye(2)[None]
        >>> kronecker_block(a_factor, g_factor, has_bias=True)[0].tolist()
        [2.0, 0.0, 3.0, 0.0]
    """
    groups = torch.eye(len(g_factor)).to(g_factor)
    d = g_factor.shape[0] * g_factor.shape[1] * a_factor.shape[1]
    block = torch.einsum("qr,qop,qij->qoirpj", groups, g_factor, a_factor).reshape(d, d)
    if not has_bias:
        return block
    index = torch.arange(d).reshape(-1, a_factor.shape[-1])
    order = torch.cat([index[:, :-1].reshape(-1), index[:, -1]])
    return block[order][:, order]


def block_diagonal(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """Keep the square blocks on the diagonal, zero elsewhere.

    Args:
        matrix: (d, d).
        sizes: the blocks' orders; their sum is d.

    Returns:
        (d, d), a new tensor.

    Raises:
        ValueError: if the sizes do not add up to d.

    Example:
        >>> import torch
        >>> block_diagonal(torch.ones(3, 3), [2, 1]).tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if matrix.shape != (sum(sizes), sum(sizes)):
        raise ValueError(f"sizes {list(sizes)} add up to {sum(sizes)}; the matrix has shape {tuple(matrix.shape)}")
    block = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(matrix.device)
    return matrix.where(block[:, None] == block, 0)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected, ||actual - expected|| / ||expected||, in float64.

    Args:
        actual: any shape.
        expected: the same shape; shapes are never broadcast.

    Returns:
        A number without unit; 0 if both vanish, infinity if only `expected` does.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import torch
        >>> relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
        0.2
    """
    if actual.shape != expected.shape:
        raise ValueError(f"actual has shape {tuple(actual.shape)}, expected has shape {tuple(expected.shape)}")
    difference = float(torch.linalg.vector_norm(actual.detach().double() - expected.detach().double()))
    scale = float(torch.linalg.vector_norm(expected.detach().double()))
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / scale
