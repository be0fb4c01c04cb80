"""LayerRule: how the derivative with respect to one type of module is read off one of its calls."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from nngeo_core.conventions import result_dtype
from nngeo_core.errors import UnsupportedLayerError
from nngeo_core.jacobians.base import LayerJacobian
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.layer import Layer

__all__ = ["Call", "LayerRule"]

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One call of a module, as a forward hook saw it.

    Attributes:
        arguments: Positional arguments; tensors are detached but share memory with the originals.
        keywords: Keyword arguments, likewise.
        path: The module's path in the model, for messages.
        n_examples: n.
        argument_axes: For each leaf of the arguments and keywords, the axis of the examples, or None where they share it;
            None as a whole if the examples are first in all tensors.
        output_axes: The same for the floating-point tensors that the module returned.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    path: str
    n_examples: int = 1
    argument_axes: tuple[int | None, ...] | None = None
    output_axes: tuple[int, ...] | None = None
    _memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def tensor(self, keyword: str, position: int) -> Tensor:
        """The tensor that was given at a position, or by keyword; in half precision, its values in float32.

        Raises:
            UnsupportedLayerError: There is none.
        """
        given = self.arguments[position] if position < len(self.arguments) else self.keywords.get(keyword)
        if not isinstance(given, Tensor):
            raise UnsupportedLayerError(f"'{self.path}' was called without a tensor as its '{keyword}'")
        return given.to(result_dtype(given.dtype)) if given.is_floating_point() else given

    def once(self, key: str, compute: Callable[[], T]) -> T:
        """What `compute` returns, computed at the first request and kept for later chunks of output directions."""
        if key not in self._memo:
            self._memo[key] = compute()
        kept: T = self._memo[key]
        return kept


class LayerRule(ABC):
    """The exact derivative of one type of layer, as a structured Jacobian.

    A rule holds no state. Subclass it, list the instance in a plugin's `nngeo_layer_rules` hook, and every representation
    works with the new layer.
    """

    name: ClassVar[str]
    module_types: ClassVar[tuple[type[nn.Module], ...]]
    claims_subtree: ClassVar[bool] = False
    """True when the module uses its children's parameters without calling the children."""
    structured: ClassVar[bool] = True
    """False for a way of last resort, without structure, that `ignore_unsupported_layers=True` leaves out."""
    way: ClassVar[str] = "read off its calls"
    """How the derivative is obtained, in a few words, for print."""
    one_output: ClassVar[bool] = True
    """False when `jacobian` takes whatever the module returned: several tensors, or the examples on another axis."""

    @abstractmethod
    def describe(self, module: nn.Module) -> Layer:
        """The layer's record: its parameters in the order in which `jacobian` lays them out."""

    def parts(self, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """The names of `describe`, cut into the layers that the module makes up; one unless a rule says otherwise.

        `jacobian` is asked for names of one part at a time, each in a structure of its own.
        """
        return (tuple(self.describe(module).parameter_shapes()),)

    def check(self, module: nn.Module) -> None:
        """Raise `UnsupportedLayerError` for a configuration that this rule cannot differentiate exactly."""

    def structure(self, module: nn.Module, names: tuple[str, ...]) -> Structure | None:
        """What `jacobian` of these parameters will be, so that costs are known before any batch; None if unsaid.

        Args:
            module: The module.
            names: Names local to the module, a subset of one of its `parts`, in that order.
        """
        return None

    @abstractmethod
    def jacobian(self, module: nn.Module, call: Call, output_gradients: Any, names: tuple[str, ...]) -> LayerJacobian:
        """The Jacobian of c output directions with respect to the named parameters, from one call.

        Args:
            module: The module that was called.
            call: The arguments of the call.
            output_gradients: Shape (c, n, *output shape of one example): the derivative of direction c of example n with
                respect to this call's output. With `one_output = False`, shape (c, *output shape), the examples where
                the module has them, and a tuple of such tensors for a module that returned several.
            names: Names local to the module, a subset of one of its `parts`, in that order.
        """
