"""
All representations of one matrix
=================================

The Fisher matrix of d parameters has d² entries. Each representation keeps fewer numbers and gives up something for it.
Here is one small network whose matrix can be drawn in full, in every representation that the library has.

**What to look for**: the grid of layers, and within a layer's block the tiles that a Kronecker product has (Martens & Grosse
2015). EKFAC (George et al. 2018) keeps KFAC's eigenvectors and takes the best eigenvalues for them, so that its error can
only be smaller. "Low rank" and "implicit" store no d x d matrix, and are exact nevertheless.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import SymLogNorm
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy

from nngeo import FIM

torch.manual_seed(0)
digits = load_digits(n_class=4)
images = avg_pool2d(torch.tensor(digits.images)[:, None] / 16, 2)  # 720 images of 4 x 4 pixels
targets = torch.tensor(digits.target)

# %%
# A convolution and a linear layer, 15 + 112 parameters. The convolution shares its parameters over nine positions, which is
# where ``kfac`` and ``kfac-reduce`` (Eschenhagen et al. 2023) differ.

model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
for _ in range(30):
    optimizer.zero_grad()
    cross_entropy(model(images), targets).backward()
    optimizer.step()

# %%
# A list of representations takes one sweep over the data, or two where EKFAC is among them. A mapping gives each layer one
# of its own; ``"0"`` and ``"3"`` are the layers' places in the model.

kinds = ["dense", "lowrank", "implicit", "blockdiag", "ekfac", "ekfac-reduce", "kfac", "kfac-reduce"]
kinds += [{"0": "dense", "3": "kfac"}, "quasidiag", "diag", "eye"]
matrices = FIM(model, images, kinds, n_output=4, variant="classif_logits")
names = [kind if isinstance(kind, str) else "mixed" for kind in kinds]

# %%
# ``convert("dense")`` is the one place where a matrix grows in memory. The exact matrix goes below the diagonal of each
# picture and the representation above it, so that a picture symmetric in its diagonal is an exact one.

exact = matrices[0].get_dense_tensor()
shown = {name: matrix.convert("dense").get_dense_tensor() for name, matrix in zip(names, matrices, strict=True)}
errors = {name: float((dense - exact).norm() / exact.norm()) for name, dense in shown.items()}
figure, grid = plt.subplots(3, 4, figsize=(11, 9), layout="constrained")
scale = float(exact.abs().max())
for ax, (name, matrix) in zip(grid.flat, zip(names, matrices, strict=True), strict=True):
    picture = shown[name].triu() + exact.tril(-1)
    drawn = ax.imshow(picture, cmap="RdBu_r", norm=SymLogNorm(scale / 300, vmin=-scale, vmax=scale))
    for place in list(matrix.layer_collection.slices().values())[1:]:
        ax.axhline(place.start - 0.5, color="gray", linewidth=0.6)
        ax.axvline(place.start - 0.5, color="gray", linewidth=0.6)
    ax.plot([0, 126], [0, 126], color="black", linewidth=0.6)
    ax.set(title=f"{name}\nerror {errors[name]:.2g}", xticks=[], yticks=[])
figure.colorbar(drawn, ax=grid, shrink=0.6)
plt.show()

# %%
# Relative errors of all entries, and of the trace:

for name, matrix in zip(names, matrices, strict=True):
    print(f"{name:12s} entries {errors[name]:.1e}   trace {float(matrix.trace() / exact.trace() - 1):+.1e}")
assert max(errors[name] for name in ("lowrank", "implicit")) < 1e-10
assert errors["blockdiag"] < errors["ekfac"] < errors["kfac"] < errors["eye"]
assert errors["blockdiag"] < errors["mixed"] < errors["kfac"]
assert errors["quasidiag"] < errors["diag"] < errors["eye"]
