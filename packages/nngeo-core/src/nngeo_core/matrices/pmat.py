"""PMat: a d x d matrix in parameter space, whatever its representation."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import Tensor

from nngeo_core.conventions import DEFAULT_REGUL, checked_regul
from nngeo_core.errors import UnsupportedOperationError
from nngeo_core.linear_algebra.precision import full_precision
from nngeo_core.linear_algebra.scipy_operator import scipy_operator
from nngeo_core.matrices.arithmetic import MatrixArithmetic
from nngeo_core.matrices.spectral import SpectralOperations
from nngeo_core.parallel.group import Group
from nngeo_core.plugins import registry
from nngeo_core.sweep.operator import OperatorGenerator
from nngeo_core.sweep.processes import agree, chosen_group, regroup, telling
from nngeo_core.vectors.pvector import PVector

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["PMat"]

Self = TypeVar("Self", bound="PMat")


class PMat(MatrixArithmetic, SpectralOperations):
    """A finished d x d matrix M: linear algebra only, always about the same layers.

    A representation derives from this class, names its `Accumulator`, and implements the private methods, which receive
    checked arguments. Vectors reach them as flat tensors (..., d), and what they return keeps the graph of the vector.
    What a representation does not implement raises `UnsupportedOperationError`.

    Args:
        generator: Differentiates the model; needed with `examples`.
        data: The stored numbers, in the form that the representation documents.
        examples: One batch or a loader from which the generator computes the data.
        layer_collection: The parameters that the matrix is about; None takes the generator's.
        n_examples: How many examples `data` was averaged over, if known.
        symmetric: False for a product, whose linear solves then do without symmetry.
        progress: Whether to show a progress bar for each pass over the examples.
        likelihood: Name of the likelihood, if known; None takes the generator's.
        checkpoint: With `examples`: a folder where sums are written on the way, and taken over from; as for `FIM`.
        checkpoint_every: How many batches lie between two writings.

    Raises:
        ValueError: Both or neither of `data` and `examples` are given, or no layer collection is known.
    """

    @overload
    def mv(self, v: PVector) -> PVector: ...
    @overload
    def mv(self, v: Tensor) -> Tensor: ...
    def mv(self, v: PVector | Tensor) -> PVector | Tensor:
        """The product M v, differentiable with respect to v.

        Args:
            v: A vector; or a batch of flat ones, a tensor (k, d) or (c, n, d) such as a dense Jacobian.

        Returns:
            A vector; or a tensor of the batch's shape.

        Raises:
            LayerCollectionMismatchError: v is about other layers.
            ShapeError: A batch does not have d columns.
        """
        found: PVector | Tensor = self._on_vectors(self._mv, v)
        return found

    @abstractmethod
    def _mv(self, v: Tensor) -> Tensor:
        """M v for v (..., d)."""

    @overload
    def __matmul__(self, v: PVector) -> PVector: ...
    @overload
    def __matmul__(self, v: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, v: "PMat") -> Any: ...
    def __matmul__(self, v: "PVector | Tensor | PMat") -> Any:
        """`M @ v` is `M.mv(v)`, and `M @ N` of two matrices `M.mm(N)`."""
        return self.mm(v) if isinstance(v, PMat) else self.mv(v)

    def vTMv(self, v: PVector) -> Tensor:
        """The quadratic form v^T M v, 0-dimensional, differentiable with respect to v.

        Raises:
            LayerCollectionMismatchError: v is about other layers.
        """
        with telling(self._group, "a quadratic form"):
            flat = self._flat(v)
            with full_precision(self.device):
                return self._quadratic_form(flat)

    def _quadratic_form(self, v: Tensor) -> Tensor:
        """v^T M v for v (d,)."""
        return v @ self._mv(v)

    @overload
    def solve(self, v: PVector, regul: float | Tensor = DEFAULT_REGUL) -> PVector: ...
    @overload
    def solve(self, v: Tensor, regul: float | Tensor = DEFAULT_REGUL) -> Tensor: ...
    def solve(self, v: PVector | Tensor, regul: float | Tensor = DEFAULT_REGUL) -> PVector | Tensor:
        """(M + regul I)^-1 v, differentiable with respect to v.

        Args:
            v: A vector; or a batch of flat ones, a tensor (k, d) or (c, n, d) such as a dense Jacobian.
            regul: The damping r.

        Raises:
            ValueError: `regul` is negative or no single number.
            LayerCollectionMismatchError: v is about other layers.
            NotPositiveDefiniteError: M + regul I is singular to working precision.
        """
        checked = checked_regul(regul)
        found: PVector | Tensor = self._on_vectors(lambda rows: self._solve(rows, checked), v)
        return found

    @abstractmethod
    def _solve(self, v: Tensor, regul: float) -> Tensor:
        """(M + regul I)^-1 v for v (..., d)."""

    @abstractmethod
    def trace(self) -> Tensor:
        """The trace of M, 0-dimensional."""

    @abstractmethod
    def frobenius_norm(self) -> Tensor:
        """The square root of the sum of squares of all entries, 0-dimensional."""

    def _frobenius_norm(self) -> Tensor:
        return self.frobenius_norm()

    def trace_per_layer(self) -> dict[str, Tensor]:
        """The trace of each layer's diagonal block, by layer id; they add up to the trace."""
        diagonal = self.get_diag()
        return {layer_id: diagonal[place].sum() for layer_id, place in self.layer_collection.slices().items()}

    def norm_per_layer(self) -> dict[str, Tensor]:
        """The Frobenius norm of each layer's diagonal block, by layer id.

        Raises:
            UnsupportedOperationError: It cannot be had in this representation.
        """
        with full_precision(self.device):
            return self._norm_per_layer()

    def _norm_per_layer(self) -> dict[str, Tensor]:
        self._unsupported("the norm of each layer's block", "convert('blockdiag') has those blocks")

    @abstractmethod
    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,), in the order of the flat parameters."""

    @abstractmethod
    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d), in the order of the flat parameters.

        Args:
            split_weight_bias: Order each layer's weights before its biases, as flat parameters are. Only Kronecker
                representations have another order, in which each output's bias follows its weights.
        """

    def _entries(self) -> Tensor:
        """All entries, shape (d, d), for `convert`."""
        return self.get_dense_tensor()

    def _blocks(self) -> dict[str, Tensor]:
        """The diagonal block of each layer, shape (d_l, d_l), for `convert`."""
        entries = self._entries()
        return {layer_id: entries[place, place] for layer_id, place in self.layer_collection.slices().items()}

    def convert(self, kind: str | type[Self]) -> Any:
        """M in another representation, computed in full: the only place where a matrix grows in memory.

        Args:
            kind: A registered name or a class: "dense" takes all entries, "blockdiag" the layers' diagonal blocks, "diag" the
                diagonal; others say in their documentation what they are made from.

        Raises:
            PluginError: The name is unknown.
            UnsupportedOperationError: The other representation cannot be made from this one.
        """
        wanted: Any = registry.representation(kind, kind="pmat") if isinstance(kind, str) else kind
        if wanted is type(self):
            return self
        if not (isinstance(wanted, type) and issubclass(wanted, PMat)):
            raise TypeError(f"convert takes a registered name or a PMat class, got {kind!r}")
        with full_precision(self.device):
            return wanted._made_from(self)

    @classmethod
    def _made_from(cls, matrix: "PMat") -> Any:
        """The representation of another matrix."""
        raise UnsupportedOperationError(
            f"a {type(matrix).__name__} cannot be made a {cls.__name__}; compute that from the examples, or "
            "convert('dense'), convert('blockdiag') or convert('diag')"
        )

    def _as(self, kind: type[Self], data: Any) -> Self:
        """The same matrix in another representation."""
        return kind(
            self.generator,
            data=data,
            layer_collection=self.layer_collection,
            n_examples=self.n_examples,
            symmetric=self.symmetric,
            likelihood=self.likelihood,
        )

    def update(
        self,
        examples: Any,
        decay: float,
        progress: bool = False,
        *,
        distributed: bool | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        """Mix in the matrix of new examples, in place: M <- decay M + (1 - decay) M(examples), an exponential average.

        For natural gradient and online elastic weight consolidation; the model's current parameters count. `n_examples`
        becomes the number of all examples seen. KFAC averages its factors, EKFAC the eigenvalues in the basis that it has.

        Args:
            examples: One batch or a loader.
            decay: Weight of the old matrix, 0 to 1.
            progress: Whether to show a progress bar for each pass.
            distributed: Whether the processes of torch.distributed's default group share the computation; None for the
                processes that the matrix was computed by. What is given holds for later updates too.
            process_group: The same for another group.

        Raises:
            DistributedError: The processes hold different matrices, or as for `FIM`.
            ValueError: `decay` is not between 0 and 1, or the matrix has no generator.
            UnsupportedOperationError: The representation has no averages.
        """
        given = distributed is not None or process_group is not None
        known = None if self.generator is None else self.generator.group
        group = chosen_group(bool(distributed), process_group) if given else known
        with telling(group, "an update"):
            if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay <= 1:
                raise ValueError(f"decay is the weight of the old matrix, between 0 and 1; got {decay!r}")
            if self.generator is None:
                raise ValueError(
                    f"this {type(self).__name__} has no generator to compute another one from examples; it was made from data"
                )
            if group is not None:
                agree(group, "an update", {"the decay": float(decay)})
            if given:
                self._regroup(group)
            data, count = self._averaged(examples, float(decay), progress)
            self.data = self._checked(data)
        self.n_examples = None if self.n_examples is None or count is None else self.n_examples + count

    def _regroup(self, group: Group | None) -> None:
        """Have what computes the matrix go over the examples of some processes, all of which have this one."""
        if group is not None:
            for name, tensor in self.tensors().items():
                group.check_same(tensor, f"the matrix to update, by its '{name}',")
        regroup(self._generators(), group, "an update")

    def _generators(self) -> list[OperatorGenerator]:
        """What computes the matrix, or its parts."""
        return [] if self.generator is None else [self.generator]

    def _averaged(self, examples: Any, decay: float, progress: bool) -> tuple[Any, int | None]:
        """The data of the average, and the number of new examples."""
        new = type(self)(
            self.generator, examples=examples, layer_collection=self.layer_collection, progress=progress
        ).to(self.dtype, self.device)
        return (decay * self + (1 - decay) * new).data, new.n_examples

    def to_scipy(self) -> Any:
        """M as a `scipy.sparse.linalg.LinearOperator`, for scipy's iterative solvers; scipy is imported on this call.

        Raises:
            ImportError: scipy is not installed.
            UnsupportedOperationError: M is a product, whose transpose is not at hand.
        """
        self._check_symmetric("an operator", "use mv(v) in a LinearOperator of your own")
        d = self.layer_collection.numel()
        return scipy_operator(self.mv, self.mv, d, self.dtype, self.device)
