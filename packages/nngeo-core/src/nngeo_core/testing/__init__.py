"""For tests of nngeo and of what plugs into it: oracles by plain autograd, and the models to try them on."""

from nngeo_core.testing.models import MODELS, Case
from nngeo_core.testing.oracles import (
    block_diagonal,
    fisher,
    fisher_directions,
    fisher_metric,
    kfac_factors,
    kronecker_block,
    output_jacobian,
    plain_gradient,
    relative_error,
)

__all__ = [
    "MODELS",
    "Case",
    "block_diagonal",
    "fisher",
    "fisher_directions",
    "fisher_metric",
    "kfac_factors",
    "kronecker_block",
    "output_jacobian",
    "plain_gradient",
    "relative_error",
]
