r"""
Laplace posterior and predictive uncertainty
============================================

Around a minimum w₀ of the regularised loss, the posterior of the parameters is close to a normal distribution,

.. math:: p(w | \text{data}) \approx \mathcal N\big(w_0, (n F + \tau I)^{-1}\big)

with F the Fisher matrix, which is averaged over the n examples, and τ the precision of a normal prior (MacKay 1992). A sample
is a call of ``sample``. With the outputs made linear in the parameters, f(x, w) = f(x, w₀) + J(x) (w - w₀), as they are in the
very approximation that gave F (Khan et al. 2019; Immer, Korzepa & Bauer 2021), samples of w become samples of predictions.

**What to look for**: the network alone is certain nearly everywhere, also where it has seen nothing. The average over the
posterior draws the same border between the classes, and grows less certain with the distance from the data.
"""

import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from nngeo import FIM, Jacobian, PMatDense

torch.manual_seed(0)
points, labels = (torch.tensor(array).double() for array in make_moons(150, noise=0.15, random_state=0))
PRIOR = 0.5  # the precision of each parameter's prior

# %%
# The posterior's mode: the loss is a sum over the examples, plus the prior's part.

model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
for _ in range(600):
    optimizer.zero_grad()
    nll = binary_cross_entropy_with_logits(model(points)[:, 0], labels, reduction="sum")
    (nll + PRIOR / 2 * sum(p.square().sum() for p in model.parameters())).backward()
    optimizer.step()

# %%
# The posterior's precision is n F + τ I. ``sample(regul=τ)`` draws from N(0, (M + τ I)⁻¹).

F = FIM(model, points, PMatDense, variant="classif_binary_logits")
precision = F.n_examples * F
generator = torch.Generator().manual_seed(0)
draws = [precision.sample(regul=PRIOR, generator=generator) for _ in range(400)]

# %%
# ``J @ v`` carries a change of the parameters to the change of the outputs at all points of a grid.

side = torch.linspace(-4, 5, 40, dtype=torch.float64)
grid = torch.cartesian_prod(side, side)
J = Jacobian(model, grid, "dense")
changes = torch.stack([(J @ draw).vector_repr[0] for draw in draws])  # (draws, points)
with torch.no_grad():
    outputs = model(grid)[:, 0]
    accuracy = ((model(points)[:, 0] > 0) == labels.bool()).double().mean()
alone = outputs.sigmoid()
averaged = (outputs + changes).sigmoid().mean(0)

# %%
# The variance of an output is also known in closed form, J (n F + τ I)⁻¹ Jᵀ. MacKay's formula turns it into a probability.

rows = J.get_dense_tensor()[0]  # (points, d)
variances = (rows * precision.solve(rows, regul=PRIOR)).sum(1)
closed_form = (outputs / (1 + math.pi / 8 * variances).sqrt()).sigmoid()

figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True, layout="constrained")
shown = {"network alone": alone, "posterior average": averaged, "standard deviation of the logit": variances.sqrt()}
for ax, (name, values) in zip(axes, shown.items(), strict=True):
    style = {"cmap": "RdBu_r", "levels": torch.linspace(0, 1, 11)} if ax is not axes[2] else {"cmap": "viridis"}
    picture = ax.contourf(side, side, values.reshape(40, 40).T, **style)
    ax.scatter(*points.T, c=labels, cmap="RdBu_r", edgecolor="black", s=12, linewidth=0.5)
    ax.set_title(name)
    figure.colorbar(picture, ax=ax)
plt.show()

# %%
# How certain are both, near the data and far from it?

distance = torch.cdist(grid, points).min(1).values
near, far = distance < 0.2, distance > 2
certain = {name: torch.maximum(p, 1 - p) for name, p in (("alone", alone), ("averaged", averaged))}
print({name: (round(float(c[near].mean()), 3), round(float(c[far].mean()), 3)) for name, c in certain.items()})
difference = float((averaged - closed_form).abs().max())
print(f"training accuracy {accuracy:.3f}; closed form and samples differ by {difference:.3f} at most")
assert accuracy > 0.9
assert certain["alone"][far].mean() > 0.95
assert certain["averaged"][far].mean() < 0.9
assert difference < 0.1

# %%
# The samples have the variance of the closed form: their ratio is one, up to the error of 400 draws, over all points.

ratio = float((changes.var(0) / variances).mean())
print(f"variance of the samples over that of the closed form: {ratio:.3f}")
assert abs(ratio - 1) < 0.25
