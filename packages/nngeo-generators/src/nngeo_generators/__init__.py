"""nngeo-generators: what computes Jacobians of PyTorch models, and one rule for each type of layer."""

from nngeo_generators.hessian import HessianGenerator
from nngeo_generators.hooks import HooksGenerator

__all__ = ["HessianGenerator", "HooksGenerator"]
__version__ = "0.1.0"
