"""PMatMixed: one representation for some layers, another one for others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from nngeo_core.layers.collection import LayerCollection
from nngeo_core.linear_algebra.norms import euclidean_norm
from nngeo_core.matrices.eigen import Eigendecomposition
from nngeo_core.matrices.files import describe_part, restore_parts
from nngeo_core.matrices.pmat import PMat
from nngeo_core.sweep.checkpoint import Checkpoint
from nngeo_core.sweep.generator import Generator
from nngeo_core.sweep.operator import OperatorGenerator
from nngeo_core.sweep.populate import collect
from nngeo_reprs.eye import PMatEye
from nngeo_reprs.interleaving import Interleaving
from nngeo_reprs.mixed_choice import Share, automatic, shares
from nngeo_reprs.mixed_sums import MixedAccumulator, listed, naming_layers

__all__ = ["PMatMixed"]

T = TypeVar("T")


class PMatMixed(PMat):
    """A matrix made of parts: some layers in one representation, others in another one; what is between parts is zero.

    Every operation is that of the parts, and is as exact as theirs; where a part does not have it, the error names the
    part's layers. Memory and cost are the parts' sums.

    Which layers get what is said by a mapping, `{nn.Linear: "kfac", "head.*": "dense", None: "blockdiag"}`: the keys are
    module types, patterns of module paths or parameter names, modules, or None for the rest, and the first key that means a
    layer counts. The layers of one key are one part, so that `"dense"` keeps what is between them. `"auto"`, also as a value
    of the mapping, stands for Kronecker factors (`"kfac"`) where a layer has them, exact blocks (`"blockdiag"`) for layers
    of at most 512 parameters (1 MiB each in float32), and the diagonal for the others.

    `data` is a sequence of matrices about some layers each, which have every layer once.

    Args:
        generator: As for `PMat`.
        data: The parts.
        examples: As for `PMat`.
        layer_collection: As for `PMat`.
        representation: With `examples`: the mapping; None for the automatic choice.
        **options: As for `PMat`.

    Raises:
        LayerCollectionMismatchError: The parts do not have each layer once, or no key of the mapping means a layer.
        ValueError: A key of the mapping gets no layer.
        TypeError: A part is no matrix, or is of another dtype or device than the others.

    Example:
        >>> from nngeo_core import LinearLayer
        >>> from nngeo_reprs import PMatDense, PMatDiag
        >>> layers = LayerCollection({name: LinearLayer(1, 1, bias=False) for name in "abc"})
        >>> outer = PMatDense(data=torch.tensor([[2.0, 1.0], [1.0, 2.0]]), layer_collection=layers.restricted("ac"))
        >>> inner = PMatDiag(data=torch.tensor([5.0]), layer_collection=layers.restricted("b"))
        >>> PMatMixed(data=[outer, inner], layer_collection=layers).get_dense_tensor()
        tensor([[2., 0., 1.],
                [0., 5., 0.],
                [1., 0., 2.]])
    """

    name = "mixed"
    accumulator = MixedAccumulator
    data: tuple[PMat, ...]

    def __init__(
        self,
        generator: Generator | None = None,
        data: Any = None,
        examples: Any = None,
        layer_collection: LayerCollection | None = None,
        *,
        representation: Any = None,
        **options: Any,
    ) -> None:
        if data is not None and representation is not None:
            raise ValueError("a PMatMixed from `data` has the parts that it is given; got a `representation` too")
        self._representation = representation
        super().__init__(generator, data, examples, layer_collection, **options)
        del self._representation  # its keys may be modules of the model
        self.symmetric = all(part.symmetric for part in self.data)

    @classmethod
    def prepare(cls, generator: Generator, choices: Any = None) -> MixedAccumulator:
        """The sums of all parts.

        Args:
            generator: Differentiates the model.
            choices: A mapping from layers to representations; None for the automatic choice.

        Raises:
            LayerCollectionMismatchError, ValueError, TypeError: The mapping does not fit the model.
            UnsupportedOperationError: One of the representations stores no sums.
        """
        return MixedAccumulator(generator, shares(generator.model, generator.layer_collection, choices))

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "PMatMixed":
        """The parts in another dtype or on another device; this matrix is unchanged.

        Raises:
            TypeError: The dtype is not a real floating-point one.
        """
        return self._by_part(lambda part: part.to(dtype, device), self.n_examples)

    def _from_examples(
        self, generator: Generator, examples: Any, progress: bool, checkpoint: Checkpoint | None
    ) -> tuple[Any, int | None]:
        sums = self.prepare(generator, self._representation)
        (data,) = collect(generator, examples, [sums], type(self).__name__ if progress else False, checkpoint)
        return data, sums.n_examples

    def _checked(self, data: Any) -> tuple[PMat, ...]:
        is_sequence = isinstance(data, Sequence) and not isinstance(data, str)
        wrong = [type(part).__name__ for part in data if not isinstance(part, PMat)] if is_sequence else []
        if not is_sequence or wrong or not data:
            given = f"one with {', '.join(wrong)}" if wrong else repr(data)
            raise TypeError(f"the data of a PMatMixed is a sequence of matrices about some layers each, got {given}")
        if len({(part.dtype, part.device) for part in data}) > 1:
            given = ", ".join(f"{part.dtype} on {part.device}" for part in data)
            raise TypeError(
                f"the parts of a PMatMixed are of one dtype and device, got {given}; part.to(dtype, device)"
            )
        self._places = Interleaving(self.layer_collection, [part.layer_collection for part in data])
        return tuple(data)

    @classmethod
    def stored_numbers(cls, layers: LayerCollection) -> dict[str, int | None]:
        """Of the automatic choice: what the representation that a layer gets stores for it."""
        found: dict[str, int | None] = {}
        for share in automatic(layers, Share(tuple(layers))):
            assert share.kind is not None
            numbers = share.kind.stored_numbers(layers)
            found |= {layer_id: numbers[layer_id] for layer_id in share.layers} if isinstance(numbers, dict) else {}
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all parts."""
        return self.data[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of all parts."""
        return self.data[0].device

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of each part, as `"<number of the part>.<name>"`."""
        return {
            f"{number}.{name}": tensor
            for number, part in enumerate(self.data)
            for name, tensor in part.tensors().items()
        }

    def _data_description(self) -> dict[str, Any]:
        return {"parts": self._each(describe_part)}

    @classmethod
    def _data_restored(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], layers: LayerCollection
    ) -> list[PMat]:
        return restore_parts(PMat, tensors, description["parts"])  # type: ignore[type-abstract]

    def __repr__(self) -> str:
        """The whole in one line, and a line for each part."""
        return "\n".join([super().__repr__(), *(f"  {listed(part.layer_collection)}: {part}" for part in self.data)])

    def _each(self, act: Callable[[PMat], T]) -> list[T]:
        """The results of an operation on each part."""
        found = []
        for part in self.data:
            with naming_layers(type(part), part.layer_collection):
                found.append(act(part))
        return found

    def _on_pairs(self, other: "PMatMixed", act: Callable[[PMat, PMat], T]) -> list[T]:
        """The results of an operation on each part and the other matrix's part about the same layers."""
        theirs = {frozenset(part.layer_collection): part for part in other.data}
        if set(theirs) != {frozenset(part.layer_collection) for part in self.data}:
            self._unsupported(
                f"a combination with parts about {[list(part.layer_collection) for part in other.data]}, which are not the "
                f"same as {[list(part.layer_collection) for part in self.data]},",
                "ask for both matrices by the same mapping from layers to representations",
            )
        return self._each(lambda part: act(part, theirs[frozenset(part.layer_collection)]))

    def _by_part(self, change: Callable[[PMat], PMat], n_examples: int | None = None) -> "PMatMixed":
        return self._like(self._each(change), n_examples=n_examples)

    def _along(self, v: Tensor, act: Callable[[PMat, Tensor], Tensor]) -> Tensor:
        """Apply an operation of each part to its coordinates of v (..., d)."""
        pieces = iter(self._places.split(v))
        return self._places.join(self._each(lambda part: act(part, next(pieces))))

    def _mv(self, v: Tensor) -> Tensor:
        return self._along(v, lambda part, piece: part._mv(piece))

    def _solve(self, v: Tensor, regul: float) -> Tensor:
        return self._along(v, lambda part, piece: part._solve(piece, regul))

    def _quadratic_form(self, v: Tensor) -> Tensor:
        pieces = iter(self._places.split(v))
        return torch.stack(self._each(lambda part: part._quadratic_form(next(pieces)))).sum()

    def _inverse(self, regul: float) -> "PMatMixed":
        return self._by_part(lambda part: part.inverse(regul))

    def _mm(self, other: "PMatMixed") -> "PMatMixed":
        return self._like(self._on_pairs(other, lambda part, partner: part.mm(partner)))

    def _add(self, other: "PMatMixed") -> "PMatMixed":
        return self._like(self._on_pairs(other, lambda part, partner: part + partner))

    def _add_identity(self, scaling: Tensor) -> "PMatMixed":
        def shifted(part: PMat) -> PMat:
            shift = scaling.to(part.device, part.dtype) if part.is_identity else scaling
            found: PMat = part + PMatEye(layer_collection=part.layer_collection, scaling=shift)
            return found

        return self._by_part(shifted, self.n_examples)

    def _scaled(self, scalar: float | Tensor) -> "PMatMixed":
        return self._by_part(lambda part: part * scalar, self.n_examples)

    def _sqrt(self) -> "PMatMixed":
        return self._by_part(lambda part: part.sqrt())

    def _pinv(self) -> "PMatMixed":
        return self._by_part(lambda part: part.pinv())

    def _eigendecomposition(self, k: int | None) -> Eigendecomposition:
        found = self._each(lambda part: part.eigendecomposition())
        values, order = torch.cat([each.values for each in found]).sort()
        counts = [len(each.values) for each in found]
        owners = torch.arange(len(found), device="cpu").repeat_interleave(torch.tensor(counts, device="cpu"))
        locals_ = torch.cat([torch.arange(count, device="cpu") for count in counts])

        def rows(places: Tensor) -> Tensor:
            chosen = order[places].cpu()
            vectors = torch.zeros(len(chosen), self.layer_collection.numel(), dtype=self.dtype, device=self.device)
            for number, each in enumerate(found):
                mine = owners[chosen] == number
                part = each.rows(locals_[chosen[mine]].to(self.device))
                vectors[mine.to(self.device)] = self._places.join_rows(number, part)
            return vectors

        left_out = [each.outside for each in found if each.outside is not None]
        outside = torch.stack(left_out).amax() if left_out else None
        return Eigendecomposition(self.layer_collection, values, rows, outside=outside).leading(k)

    def _largest_singular_value(self, tol: float) -> Tensor:
        return torch.stack(self._each(lambda part: part.norm(2, tol))).amax()

    def _smallest_singular_value(self) -> Tensor:
        return torch.stack(self._each(lambda part: part.norm(-2))).amin()

    def _logdet(self, regul: float) -> Tensor:
        return torch.stack(self._each(lambda part: part.logdet(regul))).sum()

    def _sample(self, regul: float, generator: torch.Generator | None) -> Tensor:
        draws = self._each(lambda part: part.sample(regul, generator).get_flat_representation())
        return self._places.join(draws)

    def trace(self) -> Tensor:
        """The trace, 0-dimensional."""
        return torch.stack(self._each(lambda part: part.trace())).sum()

    def frobenius_norm(self) -> Tensor:
        """The Frobenius norm, 0-dimensional."""
        return euclidean_norm(torch.stack(self._each(lambda part: part.frobenius_norm())))

    def trace_per_layer(self) -> dict[str, Tensor]:
        """The trace of each layer's diagonal block, by layer id; they add up to the trace."""
        return self._by_layer(self._each(lambda part: part.trace_per_layer()))

    def nbytes_per_layer(self) -> dict[str, int]:
        """Bytes of each layer's share, by layer id, as far as its part's representation tells them apart."""
        return {layer_id: size for part in self.data for layer_id, size in part.nbytes_per_layer().items()}

    def _norm_per_layer(self) -> dict[str, Tensor]:
        return self._by_layer(self._each(lambda part: part.norm_per_layer()))

    def _by_layer(self, found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The entries of all parts, in the order of the layers."""
        merged = {layer_id: value for part in found for layer_id, value in part.items()}
        return {layer_id: merged[layer_id] for layer_id in self.layer_collection}

    def get_diag(self) -> Tensor:
        """The diagonal, shape (d,)."""
        return self._places.join(self._each(lambda part: part.get_diag()))

    def get_dense_tensor(self, split_weight_bias: bool = True) -> Tensor:
        """All entries, shape (d, d), those between parts zero.

        Args:
            split_weight_bias: Order each layer's weights before its biases, as flat parameters are; False is for parts that
                know another order, as Kronecker factors do.
        """
        options = {} if split_weight_bias else {"split_weight_bias": False}
        return self._places.join_blocks(self._each(lambda part: part.get_dense_tensor(**options)))

    def _entries(self) -> Tensor:
        return self._places.join_blocks(self._each(lambda part: part._entries()))

    def _blocks(self) -> dict[str, Tensor]:
        return self._by_layer(self._each(lambda part: part._blocks()))

    def _generators(self) -> list[OperatorGenerator]:
        return super()._generators() + [one for part in self.data for one in part._generators()]

    def _averaged(self, examples: Any, decay: float, progress: bool) -> tuple[Any, int | None]:
        """Each part's own average: as many sweeps as there are parts, since some of them keep what they had."""
        if isinstance(examples, Iterator) and len(self.data) > 1:
            raise ValueError(
                f"{len(self.data)} parts go over the data one after the other and {type(examples).__name__} can be read only "
                "once; give a loader that can be iterated again"
            )

        def average(part: PMat) -> tuple[PMat, int | None]:
            if part.generator is None:
                raise ValueError(
                    f"a {type(part).__name__} made from data has no generator to compute an average from examples"
                )
            data, count = part._averaged(examples, decay, progress)
            seen = None if part.n_examples is None or count is None else part.n_examples + count
            return part._like(data, part.symmetric, seen), count

        parts, counts = zip(*self._each(average), strict=True)
        return parts, counts[0]
