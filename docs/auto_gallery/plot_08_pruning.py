r"""
Pruning: optimal brain damage against optimal brain surgeon
===========================================================

Which weights can be set to zero? Near a minimum the loss grows by ½ vᵀFv for a change v of the parameters, where the Fisher
matrix F stands for the Hessian. Optimal brain damage (LeCun, Denker & Solla 1990) takes F as diagonal and removes the weights
with the smallest ½ F_qq w_q². The optimal brain surgeon (Hassibi & Stork 1993) uses all of F and moves the other weights as
well, to make up for the loss: among all v that remove weight q, the best one and its price are

.. math:: v = -\frac{w_q}{(F^{-1})_{qq}} F^{-1} e_q, \qquad \frac12 \frac{w_q^2}{(F^{-1})_{qq}}

**What to look for**: a third of the parameters can go, however they are chosen. Then the diagonal, which takes the weights for
independent, is no better a guide than their size, and making up for what was removed keeps the accuracy long after.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nngeo import FIM, PMatDense, PVector

torch.manual_seed(0)
digits = load_digits()
images, targets = torch.tensor(digits.data) / 16, torch.tensor(digits.target)
held_out = torch.arange(len(images)) % 3 == 0

model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-4)
for _ in range(300):
    optimizer.zero_grad()
    cross_entropy(model(images[~held_out]), targets[~held_out]).backward()
    optimizer.step()

# %%
# The Fisher matrix, and its damped inverse: a matrix of the same representation.

F = FIM(model, images[~held_out], PMatDense, variant="classif_logits")
weights = PVector.from_model(model).detach().clone()
inverse = F.inverse(regul=1e-4).get_dense_tensor()


def removed_at_once(saliency: Tensor, count: int) -> Tensor:
    """The weights, those with the smallest saliencies set to zero."""
    flat = weights.get_flat_representation().clone()
    flat[saliency.argsort()[:count]] = 0
    return flat


def surgeon(counts: list[int]) -> list[Tensor]:
    """The weights after each number of removals. A removed row and column of F leave its inverse by one elimination."""
    flat, left, inv = weights.get_flat_representation().clone(), torch.ones(F.size(0)).bool(), inverse.clone()
    found = []
    for removed in range(max(counts) + 1):
        if removed in counts:
            found.append(flat * left)
        price = torch.where(left, flat.square() / inv.diagonal(), torch.inf)
        q = price.argmin()
        column = inv[:, q] / inv[q, q]
        flat = flat - flat[q] * column
        inv = inv - column[:, None] * inv[q]
        inv[q, q], left[q] = 1.0, False  # inv has nothing left there: no division by zero
    return found


# %%
# Accuracy on held-out digits, by the share of weights removed.

d = F.size(0)
counts = [int(share * d) for share in torch.linspace(0, 0.9, 19)]
flat = weights.get_flat_representation()
pruned = {
    "smallest weights": [removed_at_once(flat.abs(), count) for count in counts],
    "optimal brain damage": [removed_at_once(F.get_diag() * flat.square(), count) for count in counts],
    "optimal brain surgeon": surgeon(counts),
}


def accuracy(flat: Tensor) -> float:
    """That of a copy of the model with these parameters."""
    other = copy.deepcopy(model)
    PVector(F.layer_collection, vector_repr=flat).copy_to_model(other)
    return (other(images[held_out]).argmax(1) == targets[held_out]).double().mean().item()


accuracies = {name: [accuracy(flat) for flat in several] for name, several in pruned.items()}
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in accuracies.items():
    ax.plot([count / d for count in counts], values, "o-", label=name, markersize=4)
ax.set(xlabel="share of parameters removed", ylabel="accuracy on held-out digits")
ax.legend()
plt.show()

for name, values in accuracies.items():
    print(f"{name:22s}", [round(value, 3) for value in values[::2]])

# %%
# With six tenths of the parameters gone, the surgeon has lost nothing.

at = [abs(count / d - 0.6) < 0.01 for count in counts].index(True)
damage, surgery = (accuracies[f"optimal brain {name}"] for name in ("damage", "surgeon"))
assert surgery[at] > surgery[0] - 0.02
assert damage[at] < surgery[at] - 0.04
