r"""
Quickstart
==========

The Fisher information matrix says how far a model's predictions move when its parameters do. For a change v of the
parameters w, the Kullback-Leibler divergence between the predictions before and after, averaged over the inputs, is

.. math:: \frac1n \sum_i \mathrm{KL}\big(p_w(y | x_i) \Vert p_{w + v}(y | x_i)\big)
          = \frac12 v^\top F v + O(|v|^3)

(Amari 1998; Martens 2020). Here we train a digit classifier, compute its Fisher matrix, and measure both sides.

**What to look for**: the points lie on the diagonal as long as the steps are short, whatever their direction, and leave it
where the third order begins. KFAC, which keeps one number where the exact matrix has eighty, follows within a factor of two.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from nngeo import FIM, PMatDense, PMatKFAC, PVector, random_pvector

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16  # 1,797 images of 8 x 8 pixels
targets = torch.tensor(digits.target)

# %%
# A network of 610 parameters, trained as usual.

model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(100):
    optimizer.zero_grad()
    cross_entropy(model(images), targets).backward()
    optimizer.step()

# %%
# Its Fisher matrix, exactly and in Kronecker factors, from one sweep over the data. ``images`` may as well be a
# ``DataLoader``. No targets are needed: the expectation is over the model's own predictions.

exact, kfac = FIM(model, images, [PMatDense, PMatKFAC], n_output=10, variant="classif_logits")
print(exact)
print(kfac)

# %%
# Both have the same operations. A vector of the parameter space is a ``PVector``: here the last gradient, a natural
# gradient, and the parameters themselves.

gradient = PVector.from_model_grad(model)
natural = exact.solve(gradient, regul=1e-3)  # (F + 1e-3 I)^-1 g
parameters = PVector.from_model(model).detach().clone()
print(f"trace {exact.trace():.3f}, KFAC's {kfac.trace():.3f}")
print(f"|gradient| {gradient.norm():.4f}, |natural gradient| {natural.norm():.4f}")

# %%
# Now we go along these directions and along random ones, and measure the divergence.


def divergence(step: PVector) -> float:
    """KL(p_w || p_{w + step}), averaged over the images."""
    with torch.no_grad():
        before = model(images).log_softmax(1)
        step.add_to_model(model)
        after = model(images).log_softmax(1)
        parameters.copy_to_model(model)
    return kl_div(after.double(), before.double(), reduction="batchmean", log_target=True).item()


directions = {"gradient": gradient, "natural gradient": natural, "parameters": parameters}
directions |= {f"random {k}": random_pvector(exact.layer_collection) for k in range(3)}
figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
ratios = {}
for name, direction in directions.items():
    unit = direction / direction.norm()
    steps = [float(size) * unit for size in torch.logspace(-1.5, 1, 12)]
    measured = [divergence(step) for step in steps]
    for ax, F in zip(axes, (exact, kfac), strict=True):
        ax.loglog([F.vTMv(step).item() / 2 for step in steps], measured, "o-", label=name, markersize=4)
    ratios[name] = measured[2] / (exact.vTMv(steps[2]).item() / 2)
for ax, F in zip(axes, (exact, kfac), strict=True):
    ax.axline((1e-4, 1e-4), (1, 1), color="black", linewidth=0.8)
    ax.set(title=f"F as {type(F).__name__}", xlabel=r"$v^\top F v \,/\, 2$")
axes[0].set_ylabel("KL divergence, measured")
axes[1].legend(fontsize=8)
plt.show()

# %%
# For steps of length 0.09 the two agree within a few percent in every direction.

print({name: round(ratio, 4) for name, ratio in ratios.items()})
assert all(abs(ratio - 1) < 0.1 for ratio in ratios.values())
assert all(0.5 < float(kfac.vTMv(v) / exact.vTMv(v)) < 2 for v in directions.values())
