"""The likelihoods that nngeo-core registers."""

from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.categorical import ClassifLogits
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.plugins import hookimpl

__all__ = ["nngeo_likelihoods"]


@hookimpl
def nngeo_likelihoods() -> list[type[Likelihood]]:
    """Kinds by name: `classif_logits`, `regression`."""
    return [ClassifLogits, GaussianLikelihood]
