"""The likelihoods that nngeo-core registers."""

from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.bernoulli import BinaryLogits, MultilabelLogits
from nngeo_core.likelihoods.categorical import ClassifLogits, ClassifLogSoftmax
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.likelihoods.poisson import PoissonLogRate
from nngeo_core.likelihoods.positions import CausalLMLogits, SegmentationLogits
from nngeo_core.likelihoods.sampled import CausalLMRandomSigns, SegmentationRandomSigns
from nngeo_core.plugins import hookimpl

__all__ = ["nngeo_likelihoods"]


@hookimpl
def nngeo_likelihoods() -> list[type[Likelihood]]:
    """The kinds that a name alone describes; the others are objects."""
    return [
        BinaryLogits,
        CausalLMLogits,
        CausalLMRandomSigns,
        ClassifLogSoftmax,
        ClassifLogits,
        GaussianLikelihood,
        MultilabelLogits,
        PoissonLogRate,
        SegmentationLogits,
        SegmentationRandomSigns,
    ]
