"""
Kernel regression and the evolution of the NTK
==============================================

The neural tangent kernel K(x, x') = J(x) J(x')ᵀ of a network says how its output at x' moves when it is trained on x. If K
stayed as it is at the start, training would be kernel regression with it (Jacot, Gabriel & Hongler 2018; Lee et al. 2019). In
a network of ordinary width it does not: the kernel turns towards the targets (Baratin et al. 2021), and what the network has
learned beyond its first kernel is in its last one (Fort et al. 2020).

**What to look for**: the blocks of the two classes, which appear in the Gram matrix with training. Kernel regression with the
first kernel makes more errors than the network; with the last one it makes about as many.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from nngeo import FVector, GramMatrix, KernelRegression, kernel_evolution, plot_evolution, plot_gram

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
odd = 2.0 * (torch.tensor(digits.target) % 2) - 1  # 1 for an odd digit, -1 for an even one
x, y, test, test_y = images[:200], odd[:200], images[200:700], odd[200:700]
STEPS = (0, 5, 10, 20, 50, 100, 200)

# %%
# Train on two hundred digits, and keep copies of the parameters on the way.

model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
states = []
for step in range(max(STEPS) + 1):
    if step in STEPS:
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    optimizer.zero_grad()
    ((model(x)[:, 0] - y).square().mean() / 2).backward()
    optimizer.step()

# %%
# The kernel of the training examples at each of them. ``FVector`` is a vector of the function space: (outputs, examples).

targets = FVector(y[None])
snapshots = kernel_evolution(model, states, x, targets)

# %%
# Kernel regression at each checkpoint, from zero: it knows the kernel, and nothing else of the network. The damping is that
# of the checkpoint's own scale.


def error(outputs: torch.Tensor) -> float:
    """The share of test digits on the wrong side of zero."""
    return float((outputs.sign() != test_y).float().mean())


by_kernel, by_network = [], []
for state, snapshot in zip(states, snapshots, strict=True):
    model.load_state_dict(state)
    cross = GramMatrix(model, test, "dense", loader2=x)
    regul = 1e-3 * float(snapshot.kernel.trace()) / len(x)
    fit = KernelRegression(snapshot.kernel, targets, regul=regul)
    by_kernel.append(error(fit.predict(cross).vector_repr[0]))
    with torch.no_grad():
        by_network.append(error(model(test)[:, 0]))

# %%
# The kernel at the start and at the end, examples sorted by class; its alignments; the errors.

figure, axes = plt.subplots(1, 4, figsize=(14, 3.5), layout="constrained")
for ax, snapshot, step in ((axes[0], snapshots[0], 0), (axes[1], snapshots[-1], STEPS[-1])):
    plot_gram(snapshot.kernel, y, ax).set_title(f"kernel at step {step}")
plot_evolution(snapshots, STEPS, axes[2]).set_xlabel("step")
axes[3].plot(STEPS, by_kernel, "o-", label="kernel regression")
axes[3].plot(STEPS, by_network, "s-", label="network")
axes[3].set(xlabel="step", ylabel="test error", ylim=(0, None))
axes[3].legend()
plt.show()

alignments = [float(snapshot.target_alignment) for snapshot in snapshots]
print("alignment", [round(value, 3) for value in alignments])
print("kernel regression", [round(value, 3) for value in by_kernel])
print("network", [round(value, 3) for value in by_network])

# %%
# The alignment has more than doubled, and kernel regression with the last kernel does as well as the network.

assert alignments[-1] > 2 * alignments[0]
assert by_kernel[-1] < by_kernel[0] - 0.02
assert abs(by_kernel[-1] - by_network[-1]) < 0.04
