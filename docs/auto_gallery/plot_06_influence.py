r"""
Influence functions with EKFAC
==============================

Which training examples made the model say what it says? Without example i, the minimum w of the regularised mean loss moves by
(1/n) H⁻¹ gᵢ to first order, and the loss of a test example with gradient g by

.. math:: \frac1n g^\top (F + \lambda I)^{-1} g_i

(Koh & Liang 2017), where the Gauss-Newton matrix F, here in EKFAC, stands for the Hessian of the loss, and λ is the weight
decay (Grosse et al. 2023). The claim can be checked: leave the example out, train on, and look.

**What to look for**: predicted and measured changes lie along the diagonal. The most influential digits look like the test
digit: without those of its class its loss would be higher, without those of other classes lower.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nngeo import FIM, Jacobian, PVector

torch.manual_seed(0)
digits = load_digits()
images, targets = torch.tensor(digits.data) / 16, torch.tensor(digits.target)
train, held_out = slice(0, 400), slice(400, 800)
x, y, n, DECAY = images[train], targets[train], 400, 1e-2


def fit(model: nn.Module, weights: Tensor) -> None:
    """Minimise (1/n) sum_i weights_i loss_i + DECAY |w|^2 / 2 from where the model is."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=400, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weights @ cross_entropy(model(x), y, reduction="none") / n
        loss = loss + DECAY / 2 * sum(parameter.square().sum() for parameter in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)


model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
fit(model, torch.ones(n).double())

# %%
# The test digit is the one that the model is least sure about of those it gets right.

probabilities = model(images[held_out]).softmax(1)
right = probabilities.argmax(1) == targets[held_out]
chosen = torch.where(right, probabilities.max(1).values, torch.inf).argmin() + n
digit, label = images[chosen, None], targets[chosen, None]

# %%
# s = (F + λ I)⁻¹ g, once for the test digit. The products g_i . s with all training gradients are then the derivatives of the
# training losses along s: one product with the Jacobian of the losses, which no gradient is stored for.

model.zero_grad()
cross_entropy(model(digit), label).backward()
gradient = PVector.from_model_grad(model)
losses = Jacobian(model, (x, y), function=lambda x, y: cross_entropy(model(x), y, reduction="none"))
influences = {}
for kind in ("dense", "ekfac", "diag"):
    F = FIM(model, x, kind, variant="classif_logits")
    influences[kind] = (losses @ F.solve(gradient, regul=DECAY)).vector_repr[0] / n

# %%
# Leave out, one at a time, thirty examples spread over the range of influences, and train on.

ranked = influences["ekfac"].argsort()
left_out = torch.cat([ranked[:10], ranked[10:-10:38], ranked[-10:]])
with torch.no_grad():
    before = cross_entropy(model(digit), label)
measured = []
for i in left_out:
    again, weights = copy.deepcopy(model), torch.ones(n).double()
    weights[i] = 0
    fit(again, weights)
    with torch.no_grad():
        measured.append(cross_entropy(again(digit), label) - before)
measured = torch.stack(measured)
correlations = {
    kind: float(torch.corrcoef(torch.stack([values[left_out], measured]))[0, 1]) for kind, values in influences.items()
}

# %%
# The changes, where the diagonal's largest ones lie outside of the picture, and the examples whose absence raises the test
# digit's loss most and lowers it most.

figure = plt.figure(figsize=(11, 4), layout="constrained")
left, right_side = figure.subfigures(1, 2, width_ratios=(1, 1.2))
ax = left.subplots()
for kind, marker in (("diag", "x"), ("dense", "s"), ("ekfac", "o")):
    ax.plot(
        influences[kind][left_out], measured, marker, label=f"{kind}, correlation {correlations[kind]:.2f}", alpha=0.7
    )
ax.axline((0, 0), slope=1, color="black", linewidth=0.8)
limit = 2 * float(measured.abs().max())
ax.set(xlabel="predicted change of the test loss", ylabel="measured", xlim=(-limit, limit))
ax.legend(fontsize=8)
shown = [int(chosen), *ranked[-4:].flip(0).tolist(), int(chosen), *ranked[:4].tolist()]
titles = ["test digit", *["supports"] * 4, "test digit", *["opposes"] * 4]
for ax, i, title in zip(right_side.subplots(2, 5).flat, shown, titles, strict=True):
    ax.imshow(images[i].reshape(8, 8), cmap="gray_r")
    ax.set(title=f"{title}\na {int(targets[i])}", xticks=[], yticks=[])
plt.show()

print({kind: round(value, 3) for kind, value in correlations.items()})

# %%
# EKFAC, which stores a seventieth of the dense matrix, predicts what retraining measures; the diagonal is too coarse for it.

assert correlations["dense"] > 0.9
assert correlations["ekfac"] > 0.75
assert correlations["ekfac"] > correlations["diag"] + 0.1
