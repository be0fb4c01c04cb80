r"""
Elastic weight consolidation
============================

A network that has learned one task and goes on to a second one forgets the first. Elastic weight consolidation (Kirkpatrick et
al. 2017) keeps the parameters close to the old ones w₀ in the metric of the Fisher matrix F of the old task, and lets
them move where the old predictions do not care:

.. math:: \mathrm{loss}_\text{new}(w) + \frac{\lambda}{2} (w - w_0)^\top F (w - w_0)

Kirkpatrick et al. took the diagonal of F; Ritter, Botev & Barber (2018) found Kronecker factors to remember more. The split
digits are the classical test: first 0 to 4, then 5 to 9, with the same five outputs.

**What to look for**: each curve goes from "learns the new task, forgets the old one" at the right to "learns nothing" at the
left, as λ grows. The better the matrix, the further its curve reaches towards the upper right corner.
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
    """Images and targets of 0 to 4, modulo 5."""
    return images[chosen], targets[chosen] % 5


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """The share of images whose class is found."""
    return (model(data[0]).argmax(1) == data[1]).float().mean().item()


# %%
# The penalty is the quadratic form ``F.vTMv`` of the way from the old parameters, which is differentiable with respect to the
# vector; ``PVector.from_model`` follows the model, and its detached clone stays where it was.


def train(model: nn.Module, data: tuple[Tensor, Tensor], F: PMat | None = None, strength: float = 0.0) -> None:
    """Minimise the cross-entropy and the penalty."""
    anchor = PVector.from_model(model).detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = cross_entropy(model(data[0]), data[1])
        if F is not None:
            loss = loss + strength / 2 * F.vTMv(PVector.from_model(model) - anchor)
        loss.backward()
        optimizer.step()


first = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
train(first, part(old & ~held_out))

# %%
# The matrices of the old task, at the end of it. The identity, for comparison, penalises all parameters alike.

old_images, _ = part(old & ~held_out)
diag, kfac, ekfac = FIM(first, old_images, ["diag", "kfac", "ekfac"], variant="classif_logits")
matrices = {"identity": PMatEye(layer_collection=diag.layer_collection, scaling=1.0), "diagonal": diag}
matrices |= {"KFAC": kfac, "EKFAC": ekfac}
