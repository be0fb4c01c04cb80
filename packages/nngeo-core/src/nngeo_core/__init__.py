"""nngeo-core: layers, vectors, structured Jacobians, abstract matrices, likelihoods, plugins, and what users call."""

from nngeo_core.aliases import AbstractLayer, PMatAbstract
from nngeo_core.errors import (
    ConvergenceError,
    DistributedError,
    LayerCollectionMismatchError,
    NNGeoError,
    NonFiniteError,
    NotPositiveDefiniteError,
    PluginError,
    ShapeError,
    StorageError,
    UnsupportedLayerError,
    UnsupportedOperationError,
)
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.batch import JacobianBatch
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.index import IndexJacobian
from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.layout import KroneckerFactors, KroneckerLayout
from nngeo_core.jacobians.scale_shift import ScaleShiftJacobian
from nngeo_core.jacobians.structure import Structure
from nngeo_core.jacobians.sum import SumJacobian
from nngeo_core.layers.collection import LayerCollection
from nngeo_core.layers.layer import Conv2dLayer, ConvTranspose2dLayer, Layer, LinearLayer, ParameterLayer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_core.likelihoods.base import Likelihood
from nngeo_core.likelihoods.bernoulli import BinaryLogits, MultilabelLogits
from nngeo_core.likelihoods.categorical import ClassifLogits, ClassifLogSoftmax
from nngeo_core.likelihoods.curvature import LossCurvature, OutputMetric
from nngeo_core.likelihoods.empirical import Empirical
from nngeo_core.likelihoods.gaussian import GaussianLikelihood
from nngeo_core.likelihoods.poisson import PoissonLogRate
from nngeo_core.likelihoods.positions import CausalLMLogits, SegmentationLogits
from nngeo_core.likelihoods.sampled import MonteCarlo, RandomSigns
from nngeo_core.linear_algebra.bdot import bdot
from nngeo_core.matrices.fmat import FMat
from nngeo_core.matrices.kernel_spectrum import KernelSpectrum
from nngeo_core.matrices.maps import JacobianMap, PullBack, PushForward
from nngeo_core.matrices.pmat import PMat
from nngeo_core.plugins import hookimpl
from nngeo_core.sweep.accumulator import Accumulator
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.operator import OperatorGenerator
from nngeo_core.sweep.populate import populate
from nngeo_core.vectors.fvector import FVector, random_fvector
from nngeo_core.vectors.pvector import PVector, random_pvector, random_pvector_dict
from nngeo_core.verbs.compare import compare_representations
from nngeo_core.verbs.comparison.result import RepresentationComparison
from nngeo_core.verbs.empirical import EmpiricalFIM
from nngeo_core.verbs.fim import FIM
from nngeo_core.verbs.ggn import GGN
from nngeo_core.verbs.gram import GramMatrix
from nngeo_core.verbs.hessian import Hessian
from nngeo_core.verbs.jacobian import Jacobian
from nngeo_core.verbs.monte_carlo import FIM_MonteCarlo
from nngeo_core.verbs.verify import Verification, verify

__all__ = [
    "AbstractLayer",
    "Accumulator",
    "BinaryLogits",
    "Call",
    "CausalLMLogits",
    "ClassifLogSoftmax",
    "ClassifLogits",
    "Conv2dLayer",
    "ConvTranspose2dLayer",
    "ConvergenceError",
    "DenseJacobian",
    "DistributedError",
    "Empirical",
    "EmpiricalFIM",
    "FIM",
    "FIM_MonteCarlo",
    "FMat",
    "FVector",
    "GGN",
    "GaussianLikelihood",
    "Generator",
    "GramMatrix",
    "Hessian",
    "IndexJacobian",
    "Jacobian",
    "JacobianBatch",
    "JacobianMap",
    "KernelSpectrum",
    "KroneckerFactors",
    "KroneckerJacobian",
    "KroneckerLayout",
    "Layer",
    "LayerCollection",
    "LayerCollectionMismatchError",
    "LayerJacobian",
    "LayerRule",
    "Likelihood",
    "LinearLayer",
    "LossCurvature",
    "MonteCarlo",
    "MultilabelLogits",
    "NNGeoError",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "OperatorGenerator",
    "OutputMetric",
    "PMat",
    "PMatAbstract",
    "PVector",
    "ParameterLayer",
    "PluginError",
    "PoissonLogRate",
    "PullBack",
    "PushForward",
    "RandomSigns",
    "RepresentationComparison",
    "ScaleShiftJacobian",
    "SegmentationLogits",
    "ShapeError",
    "StorageError",
    "Structure",
    "SumJacobian",
    "UnsupportedLayerError",
    "UnsupportedOperationError",
    "Verification",
    "bdot",
    "compare_representations",
    "hookimpl",
    "populate",
    "random_fvector",
    "random_pvector",
    "random_pvector_dict",
    "verify",
]
__version__ = "0.1.0"
