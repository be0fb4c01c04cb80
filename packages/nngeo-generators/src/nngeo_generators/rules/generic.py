"""The generic rule: any module, exactly, by running it again on each example alone."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from nngeo_core.conventions import result_dtype
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.dense import DenseJacobian
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import ParameterLayer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.replay import Replay

__all__ = ["GenericRule", "generic_rule"]


class GenericRule(LayerRule):
    """Per-example derivatives by replaying the module's call, without structure: a dense (c, n, d_l) Jacobian.

    Args:
        subtree: Whether the parameters of the module's children are meant too (attention, recurrent cells, parametrized
            modules, or a parent that a layer was promoted to), or only its own.
    """

    name = "generic"
    module_types = ()
    structured = False
    way = "run again on each example alone"
    one_output = False

    def __init__(self, subtree: bool) -> None:
        self.claims_subtree = subtree  # type: ignore[misc]

    def describe(self, module: nn.Module) -> ParameterLayer:
        """The parameters in the module's own order."""
        parameters = module.named_parameters(recurse=self.claims_subtree)
        return ParameterLayer(tuple((name, tuple(parameter.shape)) for name, parameter in parameters))

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """None at all."""
        return Structure()

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor | tuple[Tensor, ...], names: tuple[str, ...]
    ) -> LayerJacobian:
        """Replay the call on each example."""
        gradients = (output_gradients,) if isinstance(output_gradients, Tensor) else output_gradients
        parameters = {name: module.get_parameter(name).detach() for name in names}
        rows = Replay(module, call, parameters).jacobian(gradients)
        return DenseJacobian(rows.to(result_dtype(rows.dtype)))


def generic_rule(module: nn.Module) -> GenericRule:
    """The generic rule of a module: with its children if it uses their parameters without calling them."""
    return GenericRule(subtree=parametrize.is_parametrized(module) or isinstance(module, nn.MultiheadAttention))
