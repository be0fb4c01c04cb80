"""
Natural-gradient training against SGD
=====================================

Natural-gradient descent steps along F⁻¹g instead of the gradient g: it measures a step by what it does to the predictions, so
that badly scaled parameters do not slow it down (Amari 1998). Kronecker factors that are averaged over the iterations make
it affordable (Martens & Grosse 2015); ``F.update(examples, decay=)`` is that average. The task is the one of their paper, a
deep autoencoder, which gradient descent is notoriously slow on.

**What to look for**: SGD, at the best of its learning rates, stays on plateaus that the natural gradient crosses in a few dozen
steps. It needs less than half of the steps, each of which costs several times as much.
"""

import time

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nngeo import FIM, PMatKFAC, PVector

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16  # 1,797 images of 8 x 8 pixels
BATCH, REGUL, RADIUS = 128, 3e-2, 0.02


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
# Stochastic gradient descent with momentum, and the same with the gradient g multiplied by (F + r I)⁻¹. The Fisher matrix of
# the first batch starts the average; each step mixes a twentieth of its own batch's into it. The quadratic form vᵀFv of a step,
# twice the divergence that it causes, is held below a radius (Ba, Grosse & Martens 2017).


def natural_gradient(F: PMatKFAC, gradient: PVector, rate: float) -> PVector:
    """(F + r I)^-1 g, shortened where a step along it would change the outputs too much."""
    v = F.solve(gradient, regul=REGUL)
    return min(1.0, (RADIUS / float(rate**2 * F.vTMv(v))) ** 0.5) * v


def train(rate: float, momentum: float, steps: int, natural: bool) -> list[float]:
    """The loss on all images after each step."""
    model, generator, losses, F = make_model(), torch.Generator().manual_seed(0), [], None
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        loss(model(batch), batch).backward()
        if natural:
            if F is None:
                F = FIM(model, batch, PMatKFAC, variant="regression")
            else:
                F.update(batch, decay=0.95)
            natural_gradient(F, PVector.from_model_grad(model), rate).copy_to_model_grad(model)
        optimizer.step()
        with torch.no_grad():
            losses.append(loss(model(images), images).item())
    return losses


# %%
# SGD may choose the best of four learning rates; at 0.15 it diverges.

start = time.perf_counter()
sgd = {rate: train(rate, momentum=0.9, steps=200, natural=False) for rate in (0.01, 0.03, 0.06, 0.1)}
middle = time.perf_counter()
kfac = train(0.5, momentum=0.5, steps=100, natural=True)
end = time.perf_counter()
print(f"200 steps of SGD {(middle - start) / 4:.1f} s, 100 steps of the natural gradient {end - middle:.1f} s")

figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for rate, losses in sgd.items():
    ax.plot(losses, label=f"SGD, rate {rate}", linewidth=1)
ax.plot(kfac, color="black", label="natural gradient, KFAC")
ax.set(xlabel="step", ylabel="loss on all images", ylim=(0.6, 4))
ax.legend()
plt.show()

# %%
# Eighty natural-gradient steps do more than two hundred of SGD at the best of its rates.

best = min(losses[-1] for losses in sgd.values())
print(f"SGD after 200 steps {best:.3f}, natural gradient after 80 {kfac[79]:.3f}, after 100 {kfac[99]:.3f}")
assert kfac[79] < 0.95 * best
