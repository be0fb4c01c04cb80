r"""
Comparing kernels: the limit of wide networks
=============================================

The tangent kernel of a network depends on its random initial parameters, less and less so as its layers widen: in the limit it
is a fixed function of the architecture (Jacot, Gabriel & Hongler 2018), which two draws differ from by terms of the order of
one over the root of the width. Kernels are compared by their alignment, the cosine of the angle between them once their
features are centred (Cortes, Mohri & Rostamizadeh 2012):

.. math:: \frac{\langle K, K' \rangle}{|K| \, |K'|}

Two draws that are a common kernel K and independent parts N have an alignment of \|K\|² / (\|K\|² + \|N\|²).

**What to look for**: \|N\|² / \|K\|², which is one over the alignment, less one, falls as one over the width. In the usual
parametrization the first layer, whose inputs do not become more with the width, loses its part in the kernel.
"""

from itertools import combinations

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from nngeo import FMat, kernel_alignment, layer_kernels

torch.manual_seed(0)
images = torch.tensor(load_digits().data[:100], dtype=torch.float32) / 16
WIDTHS, DRAWS = (64, 128, 256, 512, 1024), 8

# %%
# ``layer_kernels`` gives each layer's part of the kernel from one sweep; they add up to the whole.


def kernels(width: int) -> dict[str, FMat]:
    """The kernels of the layers of a new network, by layer id."""
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    return layer_kernels(model, images)


distances, shares = [], []
for width in WIDTHS:
    draws = [kernels(width) for _ in range(DRAWS)]
    whole = [first + second + third for first, second, third in (draw.values() for draw in draws)]
    pairs = [1 / kernel_alignment(one, other) - 1 for one, other in combinations(whole, 2)]
    distances.append(torch.stack(pairs).mean())
    traces = torch.stack([torch.stack([kernel.trace() for kernel in draw.values()]) for draw in draws]).mean(0)
    shares.append(traces / traces.sum())

# %%
# The slope of a line through the logarithms is the power of the width.

widths, distances = torch.tensor(WIDTHS, dtype=torch.float32), torch.stack(distances)
x, y = widths.log(), distances.log()
slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.loglog(widths, distances, "o-", label=f"measured, slope {slope:.2f}")
left.loglog(widths, distances[0] * widths[0] / widths, "--", color="gray", label="one over the width")
left.set(xlabel="width", ylabel="1 / alignment of two draws - 1")
left.legend()
for layer, share in enumerate(torch.stack(shares).T, start=1):
    right.semilogx(widths, share, "o-", label=f"layer {layer}")
right.set(xlabel="width", ylabel="share of the kernel's trace", ylim=(0, None))
right.legend()
plt.show()

print("1 / alignment - 1", [round(float(distance), 4) for distance in distances], f"slope {slope:.2f}")
print("share of the first layer", [round(float(share[0]), 3) for share in shares])
assert -1.25 < slope < -0.75
assert shares[-1][0] < shares[0][0] / 2
