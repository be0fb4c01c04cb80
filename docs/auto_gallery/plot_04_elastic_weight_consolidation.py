r"""
Elastic weight consolidation
============================

A network that has learned one task and goes on to a second one forgets the first. Elastic weight consolidation (Kirkpatrick et
al. 2017) keeps the parameters close to the old ones w₀ in the metric of the Fisher matrix F of the old task, and lets
them move where the old predictions do not care:

.. math:: \mathrm{loss}_\text{new}(w) + \frac{\lambda}{2} (w - w_0)^\top F (w - w_0)

Kirkpatrick et al. took the diagonal of F; Ritter, Botev & Barber (2018) found Kronecker factors to remember more. The split
digits are the classical test: first 0 to 4, then 5 to 9, with the same five outputs.

**What to look for**: each curve goes from "learns the new task, forgets the old one" at the upper left to "learns nothing" at
the lower right, as λ grows. The better the matrix, the further its curve reaches towards the upper right corner.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nngeo import FIM, PMat, PMatEye, PVector

torch.manual_seed(0)
digits = load_digits()
images, targets = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
held_out = torch.arange(len(images)) % 4 == 0
old, new = targets < 5, targets >= 5


def part(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Images, and digits modulo 5."""
    return images[chosen], targets[chosen] % 5


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """The share of images whose class is found."""
    return (model(data[0]).argmax(1) == data[1]).float().mean().item()


# %%
# The penalty is the quadratic form ``F.vTMv`` of the way from the old parameters, which is differentiable with respect to the
# vector; ``PVector.from_model`` follows the model, and its detached clone stays where it was.


def train(
    model: nn.Module, data: tuple[Tensor, Tensor], steps: int, F: PMat | None = None, strength: float = 0.0
) -> None:
    """Minimise the cross-entropy and the penalty."""
    anchor = PVector.from_model(model).detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(data[0]), data[1])
        if F is not None:
            loss = loss + strength / 2 * F.vTMv(PVector.from_model(model) - anchor)
        loss.backward()
        optimizer.step()


first = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
train(first, part(old & ~held_out), steps=50)

# %%
# The matrices of the old task, at the end of it. The identity, for comparison, penalises all parameters alike.

old_images, _ = part(old & ~held_out)
diag, kfac = FIM(first, old_images, ["diag", "kfac"], n_output=5, variant="classif_logits")
identity = PMatEye(layer_collection=diag.layer_collection, scaling=1.0)
strengths = [3, 10, 30, 60, 100]
penalties = {
    "no penalty": [(None, 0.0)],
    "identity": [(identity, strength / 300) for strength in strengths],
    "diagonal": [(diag, strength) for strength in strengths],
    "KFAC": [(kfac, strength) for strength in strengths],
}

# %%
# The second task, from the same start with each of them.

found: dict[str, list[tuple[float, float]]] = {}
for name, several in penalties.items():
    for F, strength in several:
        model = copy.deepcopy(first)
        train(model, part(new & ~held_out), steps=100, F=F, strength=strength)
        pair = accuracy(model, part(old & held_out)), accuracy(model, part(new & held_out))
        found.setdefault(name, []).append(pair)

figure, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
for name, pairs in found.items():
    ax.plot(*zip(*pairs, strict=True), "o-", label=name)
ax.axvline(accuracy(first, part(old & held_out)), color="gray", linestyle=":", label="before the new task")
ax.set(xlabel="accuracy on the old digits, 0 to 4", ylabel="accuracy on the new digits, 5 to 9")
ax.legend()
plt.show()

# %%
# The best mean of the two accuracies that each matrix reaches:

best = {name: max(pairs, key=sum) for name, pairs in found.items()}
print({name: tuple(round(value, 3) for value in pair) for name, pair in best.items()})
assert best["no penalty"][0] < 0.6
assert best["KFAC"][0] > 0.8 and best["KFAC"][1] > 0.8
assert sum(best["KFAC"]) > sum(best["diagonal"]) + 0.02
