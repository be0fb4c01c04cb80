"""PushForward and PullBack: the Jacobian as a map between parameter space and function space."""

from abc import ABC, abstractmethod
from typing import ClassVar

from nngeo_core.vectors.fvector import FVector
from nngeo_core.vectors.pvector import PVector

__all__ = ["PullBack", "PushForward"]


class PushForward(ABC):
    """The linear map v -> J v that carries a change of parameters to the change of outputs on n examples."""

    kind: ClassVar[str] = "push_forward"
    name: ClassVar[str]

    @abstractmethod
    def mv(self, v: PVector) -> FVector:
        """J v, shape (c, n).

        Raises:
            LayerCollectionMismatchError: v is about other layers.
        """


class PullBack(ABC):
    """The linear map u -> J^T u that carries a covector on outputs back to parameters, summed over examples."""

    kind: ClassVar[str] = "pull_back"
    name: ClassVar[str]

    @abstractmethod
    def mv(self, u: FVector) -> PVector:
        """J^T u.

        Raises:
            ShapeError: u is not (c, n) for the map's examples.
        """
