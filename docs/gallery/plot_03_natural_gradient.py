"""
Natural-gradient training against SGD
=====================================

Natural-gradient descent steps along F⁻¹g instead of the gradient g: it measures a step by what it does to the predictions, so
that badly scaled parameters do not slow it down (Amari 1998). With Kronecker factors that are averaged over the iterations
it costs little more than a gradient (Martens & Grosse 2015); ``F.update(examples, decay=)`` is that average. The task is the one
of their paper, a deep autoencoder, which gradient descent is notoriously slow on.

**What to look for**: both curves fall at first; then SGD, at the best of its learning rates, crawls along a plateau that the
natural gradient crosses in a few dozen steps.
"""

import time

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nngeo import FIM, PMatKFAC, PVector

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16  # 1,797 images of 8 x 8 pixels
STEPS, BATCH, REGUL = 200, 256, 1e-2


def make_model() -> nn.Module:
    """An autoencoder with a code of six numbers."""
    torch.manual_seed(0)
    widths = (64, 32, 16, 6, 16, 32, 64)
    layers = [(nn.Linear(narrow, wide), nn.Tanh()) for narrow, wide in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])


def loss(outputs: Tensor, images: Tensor) -> Tensor:
    """Half the squared error of an image, averaged over images: -log p of the likelihood "regression"."""
    return (outputs - images).square().sum(1).mean() / 2


# %%
# Stochastic gradient descent with momentum, and the same with the gradient multiplied by (F + r I)⁻¹. The Fisher matrix of the
# first batch starts the average; each step mixes a twentieth of its own batch's into it.


def train(rate: float, natural: bool) -> list[float]:
    """The loss on all images after each step."""
    model, generator, losses = make_model(), torch.Generator().manual_seed(0), []
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    F = None
    for _ in range(STEPS):
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        loss(model(batch), batch).backward()
        if natural:
            if F is None:
                F = FIM(model, batch, PMatKFAC, variant="regression")
            else:
                F.update(batch, decay=0.95)
            set_gradient(model, F.solve(PVector.from_model_grad(model), regul=REGUL))
        optimizer.step()
        with torch.no_grad():
            losses.append(loss(model(images), images).item())
    return losses


def set_gradient(model: nn.Module, vector: PVector) -> None:
    """Hand a vector to the optimizer as the gradient."""
    for layer_id, parts in vector.get_dict_representation().items():
        layer = model.get_submodule(layer_id)
        layer.weight.grad, layer.bias.grad = parts


# %%
# SGD may choose its learning rate from five; beyond the largest it diverges.

start = time.perf_counter()
sgd = {rate: train(rate, natural=False) for rate in (0.003, 0.01, 0.03, 0.1, 0.3)}
middle = time.perf_counter()
kfac = train(0.05, natural=True)
print(f"{(middle - start) / 5:.1f} s for a run of SGD, {time.perf_counter() - middle:.1f} s for the natural gradient")
