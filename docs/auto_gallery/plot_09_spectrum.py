"""
The spectrum of the Fisher matrix, without the matrix
=====================================================

Products F v are all that it takes to learn about a matrix too large to store. ``PMatImplicit`` computes them from the model and
the data. Random vectors z with independent signs give the trace, the mean of zᵀFz (Hutchinson 1990); a few Lanczos steps from
each give the distribution of the eigenvalues, and with it the trace of any function of F (Ubaru, Chen & Saad 2017; Ghorbani,
Krishnan & Xiao 2019). This network is small, so that all of it can be checked against the dense matrix.

**What to look for**: most eigenvalues are near zero, and a few tower above: some directions of the parameters decide what
the network says, and most do nothing (Sagun et al. 2017). Nine stand apart, one less than there are classes (Papyan 2020).
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from nngeo import FIM, PMatDense, PMatImplicit, PMatKFAC, PVector

torch.manual_seed(0)
digits = load_digits()
images, targets = torch.tensor(digits.data[:500]) / 16, torch.tensor(digits.target[:500])
model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    cross_entropy(model(images), targets).backward()
    optimizer.step()

F, dense, kfac = FIM(model, images, [PMatImplicit, PMatDense, PMatKFAC], variant="classif_logits")

# %%
# Estimates come with their standard errors. ``trace_of`` is the trace of any function of the matrix: here of log(F + r I), the
# log-determinant that a marginal likelihood asks for.

REGUL = 1e-3
generator = torch.Generator().manual_seed(0)
trace = F.hutchinson_trace(samples=30, generator=generator)
diagonal = F.hutchinson_diag(samples=30, generator=generator)
spectrum = F.spectral_density(samples=8, steps=40, generator=generator)
logdet = spectrum.trace_of(lambda values: (values + REGUL).log())
print(f"trace  {trace.value:.2f} +- {trace.standard_error:.2f}, exactly {dense.trace():.2f}")
print(f"logdet {logdet.value:.1f} +- {logdet.standard_error:.1f}, exactly {dense.logdet(regul=REGUL):.1f}")

# %%
# Leading eigenpairs, from products as well, are exact to the residuals that come with them.

leading = F.eigendecomposition(k=20)
eigenvalues = dense.eigendecomposition().values.flip(0)  # in descending order

# %%
# A damped solve runs conjugate gradients. A preconditioner, any representation close to F, saves some of the products. To count
# them, we count how often the model is called.

calls = 0


def counted(module: nn.Module, arguments: object) -> None:
    """Count a call of the model."""
    global calls
    calls += 1


gradient = PVector.from_model_grad(model)
products = {}
handle = model.register_forward_pre_hook(counted)
for name, preconditioner in (("nothing", None), ("KFAC", kfac)):
    calls = 0
    solution = F.solve(gradient, regul=REGUL, preconditioner=preconditioner)
    products[name] = calls
handle.remove()
print(f"calls of the model, preconditioned with {products}")

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
nodes, order = spectrum.nodes.clamp(min=1e-12).flatten().sort()
weights = spectrum.weights.flatten()[order] / len(spectrum.nodes)
left.semilogx(eigenvalues.clamp(min=1e-12).flip(0), torch.linspace(0, 1, len(eigenvalues)), label="dense matrix")
left.semilogx(nodes, weights.cumsum(0), "--", label="Lanczos, 320 products")
left.set(xlabel="eigenvalue", ylabel="share of smaller ones", xlim=(1e-9, 10))
left.legend(fontsize=8)
middle.semilogy(range(1, 41), eigenvalues[:40], "-", label="dense matrix")
middle.semilogy(range(1, 21), leading.values.flip(0), "o", markersize=4, label="from products")
middle.set(xlabel="rank", ylabel="eigenvalue")
middle.legend(fontsize=8)
exact = dense.get_diag()
right.errorbar(exact, diagonal.value, diagonal.standard_error, fmt=".", markersize=3, linewidth=0.4)
right.axline((0, 0), slope=1, color="black", linewidth=0.8)
right.set(xlabel="diagonal entry", ylabel="estimate")
plt.show()

# %%
# Both estimates are within four standard errors, the leading eigenvalues exact, and KFAC has saved a third of the work. A tenth
# of the eigenvalues makes up nine tenths of the trace.

share = float(eigenvalues[:60].sum() / dense.trace())
print(f"the first 60 of {len(eigenvalues)} eigenvalues have {share:.3f} of the trace")
assert abs(trace.value - dense.trace()) < 4 * trace.standard_error
assert abs(logdet.value - dense.logdet(regul=REGUL)) < 4 * logdet.standard_error
assert torch.allclose(leading.values.flip(0), eigenvalues[:20])
assert products["KFAC"] < 0.8 * products["nothing"]
assert share > 0.85
