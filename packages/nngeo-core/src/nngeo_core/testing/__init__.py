"""For tests of nngeo and of what plugs into it: oracles by plain autograd, and the models to try them on."""

from nngeo_core.testing.fmat_contract import FMatContract
from nngeo_core.testing.generator_contract import GeneratorContract
from nngeo_core.testing.jacobian_contract import JacobianContract
from nngeo_core.testing.kronecker_oracles import (
    ekfac_block,
    factors_of_parameters,
    kfac_reduce_factors,
    quasi_diagonal,
    reduced_positions,
)
from nngeo_core.testing.likelihood_contract import LikelihoodCase, LikelihoodContract
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
from nngeo_core.testing.pmat_algebra import PMatAlgebraContract
from nngeo_core.testing.pmat_contract import PMatContract
from nngeo_core.testing.pmat_spectrum import OPTIONAL_OPERATIONS
from nngeo_core.testing.rule_contract import RuleCase, RuleContract

__all__ = [
    "Case",
    "FMatContract",
    "GeneratorContract",
    "JacobianContract",
    "LikelihoodCase",
    "LikelihoodContract",
    "MODELS",
    "OPTIONAL_OPERATIONS",
    "PMatAlgebraContract",
    "PMatContract",
    "RuleCase",
    "RuleContract",
    "block_diagonal",
    "ekfac_block",
    "factors_of_parameters",
    "fisher",
    "fisher_directions",
    "fisher_metric",
    "kfac_factors",
    "kfac_reduce_factors",
    "kronecker_block",
    "output_jacobian",
    "plain_gradient",
    "quasi_diagonal",
    "reduced_positions",
    "relative_error",
]
