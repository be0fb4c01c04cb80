"""LayerCollection: the layers whose parameters make up one vector space, in flat order."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise, zip_longest

from torch import nn

from nngeo_core.errors import LayerCollectionMismatchError, UnsupportedLayerError
from nngeo_core.jacobians.structure import Structure
from nngeo_core.layers.grouping import Group, Unsupported, explain_unsupported, find_unsupported, group_parameters
from nngeo_core.layers.layer import Layer
from nngeo_core.layers.matching import find_module, match_parameters
from nngeo_core.layers.overview import Origin, layer_table
from nngeo_core.layers.rule import LayerRule
from nngeo_core.layers.selection import Choice, select_groups
from nngeo_core.layers.sources import find_sources, find_sources_of
from nngeo_core.layers.unwrapping import check_whole, inside, unwrapped

__all__ = ["LayerCollection"]


class LayerCollection(Mapping[str, Layer]):
    """An ordered mapping from layer id to the record of the layer's parameters.

    It fixes which parameters a `PVector` or a `PMat` is about and how they are laid out: layers in the order of the
    collection, parameters within a layer as its record lists them, each flattened row-major. Two collections are equal
    if ids, records, parameter names and order are.

    Args:
        layers: Layers by id; parameter names default to `"<id>.<local name>"`, but a LayerCollection's are copied.

    Attributes:
        parameter_names: Names in `model.named_parameters()` of each layer's parameters, by layer id.
        rules: The rules that were found for the modules of a model, by module path: a generator takes them from here.
        ignored: What `from_model(..., ignore_unsupported_layers=True)` left out: (module path, type, parameter names).

    Example:
        >>> from nngeo_core.layers.layer import LinearLayer
        >>> layers = LayerCollection({"fc": LinearLayer(3, 2)})
        >>> layers.add_layer("head", LinearLayer(2, 1, bias=False))
        >>> layers.numel(), layers.parameter_names["head"], layers.slices()["head"]
        (10, ('head.weight',), slice(8, 10, None))
    """

    def __init__(self, layers: Mapping[str, Layer] | None = None) -> None:
        self._layers: dict[str, Layer] = {}
        self._origins: dict[str, Origin] = {}
        self.parameter_names: dict[str, tuple[str, ...]] = {}
        self.rules: dict[str, LayerRule] = {}
        self.ignored: tuple[Unsupported, ...] = ()
        names = layers.parameter_names if isinstance(layers, LayerCollection) else {}
        for layer_id, layer in (layers or {}).items():
            self.add_layer(layer_id, layer, names.get(layer_id))
        if isinstance(layers, LayerCollection):
            self._origins.update(layers._origins)
            self.rules.update(layers.rules)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        ignore_unsupported_layers: bool = False,
        trainable_only: bool = False,
        only: Sequence[Choice] | None = None,
    ) -> "LayerCollection":
        """All parameters of a model, each once: a layer is the set of parameters that the same modules use.

        A layer's id is the path of the first module that uses it; where that module has several layers (one of its
        parameters is tied to another module's, or it is an attention with projections of its own), the name of the
        layer's first parameter.

        Args:
            model: The model; nothing in it changes.
            ignore_unsupported_layers: Leave out parameters of modules without a structured rule, and list them in
                `ignored`. Without this, they are differentiated the generic way, example by example.
            trainable_only: Leave out parameters with `requires_grad=False`.
            only: Which layers to take: patterns of module paths or parameter names (`"encoder.*"`), module types, or modules
                of the model with all that is inside them; None takes all.

        Raises:
            UnsupportedLayerError: If a module's rule refuses its configuration; without the package nngeo-generators, which
                differentiates any module, also if one with parameters has no rule.
            ValueError: If a lazy module has not seen its first batch yet, or one of `only` means no layer.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
            >>> dict(LayerCollection.from_model(model))["2"]
            LinearLayer(in_features=2, out_features=1, bias=True)
            >>> list(LayerCollection.from_model(model, only=["2*"]))
            ['2']
        """
        model = unwrapped(model)
        names = {name for name, p in model.named_parameters() if p.requires_grad} if trainable_only else None
        groups = group_parameters(find_sources(model, names), names)
        groups = groups if only is None else select_groups(model, groups, only)
        ignored = find_unsupported(model, groups, structured_only=ignore_unsupported_layers)
        if ignored and not ignore_unsupported_layers:
            raise UnsupportedLayerError(explain_unsupported(ignored))
        collection = cls()
        collection.ignored = ignored
        collection._add_groups(
            model, [group for group in groups if group.unsupported(ignore_unsupported_layers) is None]
        )
        return collection

    def add_layer(self, name: str, layer: Layer, parameter_names: Sequence[str] | None = None) -> None:
        """Append a layer.

        Args:
            name: The layer's id.
            layer: Its record.
            parameter_names: Names in `model.named_parameters()` of the layer's parameters, in its order; by default
                `"<name>.<local name>"`, or the local name alone if `name` is empty (a model that is itself a layer).

        Raises:
            ValueError: If the id or one of the parameters is in the collection already, the names are too few or too
                many, or the layer has no parameters.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> layers = LayerCollection()
            >>> layers.add_layer("output", LinearLayer(3, 2, bias=False), ["classifier.1.weight"])
            >>> layers.parameter_names
            {'output': ('classifier.1.weight',)}
        """
        local_names = tuple(layer.parameter_shapes())
        names = tuple(f"{name}.{local}" if name else local for local in local_names)
        names = names if parameter_names is None else tuple(parameter_names)
        if not local_names or len(names) != len(local_names):
            raise ValueError(f"layer '{name}' has parameters {local_names}, got {len(names)} names for them: {names}")
        if name in self._layers:
            raise ValueError(f"layer id '{name}' is in the collection already, as {self._layers[name]}")
        known = {known for held in self.parameter_names.values() for known in held}
        twice = known.intersection(names) | {repeated for repeated, count in Counter(names).items() if count > 1}
        if twice:
            raise ValueError(f"layer '{name}' holds parameters that the collection has already: {sorted(twice)}")
        self._layers[name] = layer
        self.parameter_names[name] = names

    def add_layer_from_model(self, model: nn.Module, module: nn.Module) -> None:
        """Append the layer that one module of a model makes up, under the id that it has in `from_model`.

        A module whose rule takes its parameters in parts (attention) makes up several layers, as in `from_model`. A
        parameter that is tied to another module's is taken whole, under its first name.

        Args:
            model: The model.
            module: One of `model.modules()`, with parameters of its own.

        Raises:
            UnsupportedLayerError: If the module has no rule, or its rule refuses its configuration.
            ValueError: If the module is not part of the model, has no parameters of its own, or one of them is in the
                collection already.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
            >>> layers = LayerCollection()
            >>> layers.add_layer_from_model(model, model[2])
            >>> layers.parameter_names
            {'2': ('2.weight', '2.bias')}
        """
        groups = group_parameters(find_sources_of(model, module))
        unsupported = find_unsupported(model, groups)
        if unsupported:
            raise UnsupportedLayerError(explain_unsupported(unsupported))
        self._add_groups(model, groups)

    def _add_groups(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """Append one layer for each group, under its module's path if that means no other layer."""
        layers_of_module = Counter(group.sources[0].path for group in groups)
        for group in groups:
            source = group.sources[0]
            layer_id = source.path if source.whole and layers_of_module[source.path] == 1 else group.names[0]
            self.add_layer(layer_id, source.record(model.get_submodule(source.path), group.names), group.names)
            self._origins[layer_id] = group.origin(model)
            self.rules.update({source.path: source.rule for source in group.sources if source.rule is not None})

    def restricted(self, layer_ids: Collection[str]) -> "LayerCollection":
        """Some of the layers, in the order that they have here.

        Raises:
            LayerCollectionMismatchError: If one of them is not in the collection.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> layers = LayerCollection({"a": LinearLayer(3, 2), "b": LinearLayer(2, 1), "c": LinearLayer(1, 1)})
            >>> list(layers.restricted(["c", "a"]))
            ['a', 'c']
        """
        unknown = [layer_id for layer_id in layer_ids if layer_id not in self]
        if unknown:
            raise LayerCollectionMismatchError(f"the layers {unknown} are not in a collection that has {list(self)}")
        part = LayerCollection()
        for layer_id in self:
            if layer_id in layer_ids:
                part.add_layer(layer_id, self[layer_id], self.parameter_names[layer_id])
        part._origins.update({layer_id: origin for layer_id, origin in self._origins.items() if layer_id in part})
        part.rules.update(self.rules)
        return part

    def get_layerid_module_maps(self, model: nn.Module) -> tuple[dict[str, nn.Module], dict[nn.Module, str]]:
        """The module of each layer, and the layer of each module.

        A layer of tied parameters belongs to the first module that uses it; the other modules that do map to it unless
        they have a layer of their own.

        Raises:
            LayerCollectionMismatchError: If the model does not have the collection's parameters.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
            >>> layers = LayerCollection({"0": LinearLayer(3, 2)})
            >>> layers.get_layerid_module_maps(model)[0]
            {'0': Linear(in_features=3, out_features=2, bias=True)}
        """
        layer_of: dict[nn.Parameter, str] = {}
        held: dict[str, set[nn.Parameter]] = {layer_id: set() for layer_id in self}
        for layer_id, _, parameter in match_parameters(model, self, self.parameter_names):
            layer_of[parameter] = layer_id
            held[layer_id].add(parameter)
        layerid_to_module = {layer_id: find_module(model, parameters) for layer_id, parameters in held.items()}
        module_to_layerid: dict[nn.Module, str] = {}
        for layer_id, module in layerid_to_module.items():
            module_to_layerid.setdefault(module, layer_id)
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter in layer_of:
                    module_to_layerid.setdefault(module, layer_of[parameter])
        return layerid_to_module, module_to_layerid

    def parameters(self, layerid_to_module: Mapping[str, nn.Module]) -> Iterator[nn.Parameter]:
        """The parameters in flat order, given each layer's module (see `get_layerid_module_maps`).

        Raises:
            LayerCollectionMismatchError: If a layer has no module, or the module lacks one of the layer's parameters.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> layers = LayerCollection({"0": LinearLayer(3, 2)})
            >>> [tuple(p.shape) for p in layers.parameters({"0": nn.Linear(3, 2)})]
            [(2, 3), (2,)]
        """
        for layer_id, layer in self.items():
            if layer_id not in layerid_to_module:
                raise LayerCollectionMismatchError(f"layerid_to_module has no module for layer '{layer_id}'")
            module = layerid_to_module[layer_id]
            own = dict(module.named_parameters(remove_duplicate=False))
            for name, local in zip(self.parameter_names[layer_id], layer.parameter_shapes(), strict=True):
                parameter = own.get(local, own.get(name.rpartition(".")[2]))
                if parameter is None:
                    raise LayerCollectionMismatchError(
                        f"layer '{layer_id}' needs a module with a parameter '{local}', got {module}; "
                        "get_layerid_module_maps(model) gives the right one"
                    )
                yield parameter

    def named_parameters(self, model: nn.Module) -> tuple[tuple[str, nn.Parameter], ...]:
        """Pairs (name, parameter) in flat order, under the names of `model.named_parameters()`; tied ones once.

        Raises:
            LayerCollectionMismatchError: If the model lacks a parameter, or has it in another shape.
            UnsupportedOperationError: The model's parameters are in pieces on several processes, as under FSDP.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> layers = LayerCollection({"0": LinearLayer(3, 2)})
            >>> [name for name, _ in layers.named_parameters(nn.Sequential(nn.Linear(3, 2)))]
            ['0.weight', '0.bias']
        """
        try:
            matched = list(match_parameters(inside(model), self, self.parameter_names))
        except LayerCollectionMismatchError:
            unwrapped(model)  # under FSDP parameters have other names and shapes
            raise
        named = tuple((name, parameter) for _, name, parameter in matched)
        check_whole(named)
        return named

    def structure(self, layer_id: str) -> Structure | None:
        """What is known of a layer's Jacobian before any batch; None if neither its rules nor its record say.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> LayerCollection({"a": LinearLayer(3, 2)}).structure("a").factor_shapes
            ((1, 4, 4), (1, 2, 2))
        """
        origin = self._origins.get(layer_id)
        return self[layer_id].structure() if origin is None else origin.structure

    def numel(self) -> int:
        """Total number d of scalar parameters.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> LayerCollection({"a": LinearLayer(3, 2), "b": LinearLayer(2, 1)}).numel()
            11
        """
        return sum(layer.numel() for layer in self.values())

    def slices(self) -> dict[str, slice]:
        """Where each layer's parameters lie in a flat vector of d scalars, by layer id.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> LayerCollection({"a": LinearLayer(3, 2), "b": LinearLayer(2, 1)}).slices()
            {'a': slice(0, 8, None), 'b': slice(8, 11, None)}
        """
        ends = list(accumulate((layer.numel() for layer in self.values()), initial=0))
        return {layer_id: slice(start, end) for layer_id, (start, end) in zip(self, pairwise(ends), strict=True)}

    def check_same(self, other: "LayerCollection") -> None:
        """Raise unless both collections describe the same layers in the same order.

        Raises:
            LayerCollectionMismatchError: Naming the first difference.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> LayerCollection({"fc": LinearLayer(3, 2)}).check_same(LayerCollection({"fc": LinearLayer(3, 2)}))
        """
        if self is other:
            return
        for mine, theirs in zip_longest(self._entries(), other._entries(), fillvalue="nothing"):
            if mine != theirs:
                raise LayerCollectionMismatchError(
                    f"layer collections differ: {mine} in one, {theirs} in the other. Build both objects with one "
                    "layer_collection=, or take the common part with PVector.restrict"
                )

    def check_contains(self, part: "LayerCollection") -> None:
        """Raise unless every layer of another collection is one of this one's.

        Raises:
            LayerCollectionMismatchError: Naming the first layer that is missing or described otherwise.

        Example:
            >>> from nngeo_core.layers.layer import LinearLayer
            >>> layers = LayerCollection({"a": LinearLayer(3, 2), "b": LinearLayer(2, 1)})
            >>> layers.check_contains(LayerCollection({"b": LinearLayer(2, 1)}))
        """
        for layer_id, layer in part.items():
            wanted = (layer, part.parameter_names[layer_id])
            held = (self.get(layer_id), self.parameter_names.get(layer_id))
            if wanted != held:
                known = held if layer_id in self else f"only the layers {list(self)}"
                raise LayerCollectionMismatchError(
                    f"layer '{layer_id}' {wanted} is not in a collection that has {known}"
                )

    def _entries(self) -> list[tuple[str, Layer, tuple[str, ...]]]:
        return [(layer_id, layer, self.parameter_names[layer_id]) for layer_id, layer in self.items()]

    def __getstate__(self) -> dict[str, object]:
        """Without the rules, which are looked up anew where the collection arrives."""
        return {**vars(self), "rules": {}}

    def __eq__(self, other: object) -> bool:
        return self._entries() == other._entries() if isinstance(other, LayerCollection) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, layer_id: str) -> Layer:
        return self._layers[layer_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"LayerCollection({len(self)} layers, {self.numel()} parameters)"

    def __str__(self) -> str:
        ignored = [f"ignored: '{path}' ({kind}) with {', '.join(names)}" for path, kind, names in self.ignored]
        return "\n".join([layer_table(self, self._origins), *ignored])
