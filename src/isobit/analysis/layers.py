"""The layers of a prepared network as an engine sees them: an op, what fuses behind it, and its quantizers."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from isobit.graph.insert import Preparation, preparation
from isobit.graph.names import names
from isobit.graph.placement import STRUCTURAL
from isobit.graph.slots import Slot, weight_slot
from isobit.graph.tensors import PASSIVE, Tensors, is_float_tensor, tensors_of

RESHAPING = frozenset({"reshape", "transpose", "slice", "pad", "getitem"})
"""Kinds that hand integers on as they are and are no layers of their own."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Edge:
    """A quantized tensor as a layer or the network's output reads it, and the slot that rounds it.

    Dropout, identity or a padding that a convolution absorbs may lie between the two. `origin` is the slot's node where
    these integers were made; behind it they were only reshaped.
    """

    tensor: fx.Node
    origin: fx.Node
    slot: Slot


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """A quantized op and what an engine fuses with it.

    `node` is the op, `chain` the op and the ops that are computed with it (batch norm, ReLU), `output` the node
    whose value other layers read, behind the quantizer where there is one. `inputs` are the quantized tensors that
    it reads, `results` the outputs of the network that it computes and that are rounded. A layer that `moves`
    integers, such as max pooling, rounds nothing itself.
    """

    name: str
    kind: str
    node: fx.Node
    chain: tuple[fx.Node, ...]
    output: fx.Node
    module: nn.Module | None
    weight: Slot | None
    inputs: tuple[Edge, ...]
    results: tuple[Edge, ...]
    moves: bool

    @property
    def float_weight(self) -> Tensor | None:
        """The weight of the float network, also where roundings were found from data; None without a quantized one."""
        if self.weight is None or self.module is None or not isinstance(self.module.weight, Tensor):
            return None
        return self.module.weight.detach() if self.weight.original is None else self.weight.original

    @property
    def label(self) -> str:
        """The kind in words; a convolution with one input channel per group is depthwise."""
        depthwise = isinstance(self.module, nn.modules.conv._ConvNd) and self.module.groups > 1
        if depthwise and self.module is not None and self.module.groups == self.module.in_channels:
            return f"depthwise {self.kind.replace('_', ' ')}"
        return self.kind.replace("_", " ")


def quantized_layers(model: fx.GraphModule) -> tuple[Layer, ...]:
    """The layers that compute with integers, in network order; raises SettingError for a model without quantizers."""
    return _Finder(model).layers()


class _Finder:
    """Views of one graph while its layers are collected."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.preparation: Preparation = preparation(model)
        self.tensors: Tensors = tensors_of(model)
        self.names = names(model.graph)
        self.floats = {op.name for op in self.preparation.plan.float_ops}

    def layers(self) -> tuple[Layer, ...]:
        heads = [node for node in self.model.graph.nodes if self.is_head(node)]
        results = self.results()
        return tuple(self.layer(node, results) for node in heads)

    def layer(self, node: fx.Node, results: dict[fx.Node, list[Edge]]) -> Layer:
        chain = tuple(self.chain(node))
        output = self.slot_behind(chain[-1]) or chain[-1]
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        placement = self.preparation.profile.placement
        return Layer(
            name=self.names[node],
            kind=self.kind(node),
            node=node,
            chain=chain,
            output=output,
            module=module,
            weight=None if module is None else weight_slot(module),
            inputs=tuple(edge for tensor in self.tensors.inputs(node) if (edge := self.edge(tensor)) is not None),
            results=tuple(results.get(output, ())),
            moves=self.kind(node) in placement.shared,
        )

    def is_head(self, node: fx.Node) -> bool:
        """Whether an op computes with integers and is not fused into the one before."""
        kind = self.kind(node)
        if kind in STRUCTURAL | RESHAPING | {"quantize"} or not is_float_tensor(node):
            return False
        return self.names[node] not in self.floats and not self.is_fused(node)

    def is_fused(self, node: fx.Node) -> bool:
        pairs = self.preparation.profile.fusions
        sources = [self.tensors.source(t) for t in self.tensors.inputs(node)]
        return any((self.kind(s), self.kind(node)) in pairs for s in sources)

    def chain(self, node: fx.Node) -> Iterator[fx.Node]:
        """An op and all that fuses behind it."""
        yield node
        reader = self.tensors.only_reader(node)
        if reader is not None and (self.kind(node), self.kind(reader)) in self.preparation.profile.fusions:
            yield from self.chain(reader)

    def slot_behind(self, tensor: fx.Node) -> fx.Node | None:
        return next((user for user in tensor.users if self.kind(user) == "quantize"), None)

    def edge(self, tensor: fx.Node) -> Edge | None:
        """The rounding that a reader of this tensor sees, None where it reads a float value."""
        place = self.tensors.source(tensor)
        module = self.model.get_submodule(str(place.target)) if place.op == "call_module" else None
        return Edge(tensor=tensor, origin=self.origin(place), slot=module) if isinstance(module, Slot) else None

    def results(self) -> dict[fx.Node, list[Edge]]:
        """The network's quantized outputs, by the output of the layer that computes them."""
        found: dict[fx.Node, list[Edge]] = {}
        (output,) = (n for n in self.model.graph.nodes if n.op == "output")
        for tensor in output.all_input_nodes:
            edge = self.edge(tensor) if is_float_tensor(tensor) else None
            if edge is not None:
                found.setdefault(edge.origin, []).append(edge)
        return found

    def origin(self, place: fx.Node) -> fx.Node:
        """The first slot of a chain of slots with nothing but reshapes and the like between them."""
        before = place.all_input_nodes[0]
        if self.kind(before) not in RESHAPING | PASSIVE:
            return place
        source = self.tensors.source(self.tensors.inputs(before)[0])
        return self.origin(source) if self.kind(source) == "quantize" else place

    def kind(self, node: fx.Node) -> str:
        return self.tensors.kinds[node]
