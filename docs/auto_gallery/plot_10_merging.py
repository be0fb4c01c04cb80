r"""
Merging two models by their Fisher matrices
===========================================

Two copies of a network have been trained on different data. The mean of their parameters need not be good for either. If each
posterior is taken as normal around its mode, with precision n F (see the Laplace posterior), the product of the two has its
mode where

.. math:: \Big(\sum_k n_k F_k\Big) w = \sum_k n_k F_k w_k

so that each parameter comes from the model that needs it (Matena & Raffel 2022, with diagonal F). The equation is ``solve``, in
any representation: a sum of two KFAC matrices is solved as well.

**What to look for**: on the way between the two models the accuracy over all classes has a peak in the middle; the mergings
lie above it.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nngeo import FIM, PVector

torch.manual_seed(0)
digits = load_digits()
images, targets = torch.tensor(digits.data) / 16, torch.tensor(digits.target)
held_out = torch.arange(len(images)) % 4 == 0


def train(model: nn.Module, chosen: Tensor, steps: int) -> nn.Module:
    """A copy that has learned these digits."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(images[chosen]), targets[chosen]).backward()
        optimizer.step()
    return model


def accuracy(vector: PVector) -> float:
    """On held-out digits of all classes, with these parameters."""
    vector.copy_to_model(scratch)
    return (scratch(images[held_out]).argmax(1) == targets[held_out]).double().mean().item()


# %%
# A common start that has seen all classes for a moment; then one model learns 0 to 4, the other 5 to 9.

start = train(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double(), ~held_out, 30)
scratch = copy.deepcopy(start)
halves = [~held_out & (targets < 5), ~held_out & (targets >= 5)]
models = [train(start, half, 30) for half in halves]
vectors = [PVector.from_model(model).detach().clone() for model in models]

# %%
# The Fisher matrices of each model on its own data, in several representations. A normal prior around the mean of the two
# models, of a tenth of the average precision, decides where neither matrix has anything to say.

kinds = ["diag", "kfac", "ekfac"]
matrices = [
    FIM(model, images[half], kinds, variant="classif_logits") for model, half in zip(models, halves, strict=True)
]
merged = {}
for k, kind in enumerate(kinds):
    precisions = [both[k].n_examples * both[k] for both in matrices]
    pulled = precisions[0] @ vectors[0] + precisions[1] @ vectors[1]
    total = precisions[0] + precisions[1]
    prior = 0.1 * float(total.trace()) / total.size(0)
    merged[kind] = accuracy(total.solve(pulled + prior * (vectors[0] + vectors[1]) / 2, regul=prior))

# %%
# The way from one model to the other, through their mean.

shares = torch.linspace(0, 1, 21).tolist()
between = [accuracy((1 - share) * vectors[0] + share * vectors[1]) for share in shares]
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(shares, between, "o-", color="gray", label="mean, weighted by a number")
for kind, colour in zip(kinds, ("tab:blue", "tab:orange", "tab:green"), strict=True):
    ax.axhline(merged[kind], color=colour, label=f"weighted by F, {kind}")
ax.set(xlabel="from the model of 0 to 4 to that of 5 to 9", ylabel="accuracy on all digits", ylim=(0.2, 1))
ax.legend(loc="lower center", fontsize=8)
plt.show()

# %%
# Kronecker factors, which know how the weights of a layer act together, merge better than a diagonal.

print(f"one of the two {max(between[0], between[-1]):.3f}, best mean {max(between):.3f}")
print("weighted by F:", {kind: round(value, 3) for kind, value in merged.items()})
assert merged["diag"] > max(between) + 0.01
assert min(merged["kfac"], merged["ekfac"]) > max(between) + 0.04
