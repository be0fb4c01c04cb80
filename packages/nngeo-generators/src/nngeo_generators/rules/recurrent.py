"""Recurrent layers and cells: linear layers that are applied at every step, run again to find the derivatives there."""

from torch import Tensor, nn

from nngeo_core.jacobians.kronecker import KroneckerJacobian
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import ParameterLayer
from nngeo_core.layers.rule import Call, LayerRule
from nngeo_generators.rules.recurrent_replay import RecurrentReplay, endings
from nngeo_generators.rules.weight_and_bias import weight_layout

__all__ = ["RecurrentRule"]

PROJECTIONS = (("weight_ih", "bias_ih"), ("weight_hh", "bias_hh"), ("weight_hr",))


class RecurrentRule(LayerRule):
    """J = sum_t g_t (x) a_t for the projections of the input, of the hidden state, and of an LSTM's output if it has one.

    a_t is what the projection reads at step t, and g_t the derivative with respect to what it returns there; the gates are
    rows of one weight. Every direction of every layer has projections of its own. A call on a packed sequence goes the
    generic way.
    """

    name = "recurrent"
    module_types = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
    way = "replayed, and read off its projections"
    one_output = False

    def describe(self, module: nn.Module) -> ParameterLayer:
        """The projections, layer by layer and direction by direction."""
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        return ParameterLayer(tuple((name, tuple(own[name].shape)) for part in self.parts(module) for name in part))

    def parts(self, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Each projection, as far as the module has it, with its bias."""
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        ends = [ending for layer in endings(module) for ending in layer]
        found = (tuple(name + end for name in part if name + end in own) for end in ends for part in PROJECTIONS)
        return tuple(part for part in found if part)

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure:
        """Inputs of a projection times the gradients of its outputs."""
        return Structure(weight_layout(module, names))

    def jacobian(
        self, module: nn.Module, call: Call, output_gradients: Tensor | tuple[Tensor, ...], names: tuple[str, ...]
    ) -> KroneckerJacobian:
        """Of the parameters of one projection."""
        assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
        found = call.once("replay", lambda: RecurrentReplay(module, call))
        weight = names[0].replace("bias", "weight")
        g, a = found.pull_back(output_gradients)[weight], found.inputs[weight]
        a = a if names[0] == weight else a[..., :0]
        return KroneckerJacobian(a.unsqueeze(2), g.unsqueeze(3), weight_layout(module, names))
