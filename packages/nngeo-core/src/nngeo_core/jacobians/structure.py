"""Structure: what is known of a layer's Jacobian before any batch, and so what its factors will take."""

import math
from dataclasses import dataclass

from nngeo_core.jacobians.layout import KroneckerLayout

__all__ = ["Structure"]


@dataclass(frozen=True)
class Structure:
    """What a layer rule promises of its Jacobians before it has seen a call.

    Attributes:
        layout: How the parameters read as matrices, of a Jacobian that is a sum of Kronecker products; None of any other.
        diagonal_inputs: Whether its input factor is diagonal, as where rows of a table are looked up.

    Example:
        >>> Structure(KroneckerLayout(groups=1, outputs=2, inputs=3, has_bias=True)).factor_shapes
        ((1, 4, 4), (1, 2, 2))
        >>> Structure().factor_shapes is None
        True
    """

    layout: KroneckerLayout | None = None
    diagonal_inputs: bool = False

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Shapes of the input factor, (q, A, A), or (q, A) of a diagonal, and of the output factor, (q, G, G).

        A counts the constant input of a bias. None without Kronecker factors.
        """
        if self.layout is None:
            return None
        q, width, outputs = self.layout.groups, self.layout.input_width, self.layout.outputs
        return (q, width) if self.diagonal_inputs else (q, width, width), (q, outputs, outputs)

    @property
    def factor_numel(self) -> int | None:
        """Entries of both factors together; None without Kronecker factors."""
        shapes = self.factor_shapes
        return None if shapes is None else sum(math.prod(shape) for shape in shapes)
