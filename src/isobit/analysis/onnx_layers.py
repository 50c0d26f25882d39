"""Parts of an ONNX file as files of their own: each layer between the quantizers around it, to be run alone.

A part is what engines compute as one: the ops that hand each other float values, from the tensors of integers that they
read to those that they write. The same ops of another file, of other widths or in float, are found by their names.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from isobit.core.errors import UnsupportedError

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "MatMulInteger"})
"""Ops that a part is named after, before all others."""

_SHAPED_BY = frozenset({"Reshape", "Expand"})
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish"})
FLOAT_SIDE = "/float"
"""What the names of a part's inputs and outputs end on, where a quantizer stands between them and the ops."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Part:
    """A file of some ops: `name` is that of the layer, `ops` the names of all, `what` kind, sizes and shape in words.

    `signature` is equal for parts that do the same work: it holds all but the values of weights.
    """

    name: str
    ops: tuple[str, ...]
    what: str
    signature: str
    model: onnx.ModelProto


@final
class OnnxLayers:
    """The ops of a file, with every size fixed at one batch, and how they fall into parts."""

    def __init__(self, model: onnx.ModelProto, *, batch: int = 1) -> None:
        self.model = _at_batch(model, batch)
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.initializers = {t.name: t for t in graph.initializer}
        self.types: dict[str, onnx.ValueInfoProto] = {
            v.name: v for v in (*graph.input, *graph.value_info, *graph.output)
        }
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.constants = set(self.initializers)
        self.integers: set[str] = set()
        self.feeding: set[int] = set()
        for node in self.nodes:
            inputs = [name for name in node.input if name]
            for name in inputs:
                self.readers.setdefault(name, []).append(node)
            if all(name in self.constants for name in inputs):
                self.constants.update(node.output)
            elif node.op_type == "QuantizeLinear":
                self.integers.add(node.output[0])
            elif all(name in self.constants or name in self.integers for name in inputs):
                self.feeding.add(id(node))  # between a QuantizeLinear and the float values of a part
                if node.op_type != "DequantizeLinear":
                    self.integers.update(node.output)
        self.results = {value.name for value in graph.output}

    @cached_property
    def computing(self) -> list[onnx.NodeProto]:
        """The ops that neither make constants nor stand on the way from integers to floats, nor are quantizers."""
        return [
            n
            for n in self.nodes
            if n.output[0] not in self.constants and id(n) not in self.feeding and n.op_type != "QuantizeLinear"
        ]

    def groups(self) -> list[tuple[str, ...]]:
        """The names of the ops of each part, in the order of the file; a quantizer of the network's input is one too.

        A file without quantizers of activations has a part for each op and the activation behind it.
        """
        joined: dict[int, int] = {}
        quantized = any(n.op_type == "QuantizeLinear" and n.output[0] in self.integers for n in self.nodes)
        for node in self.computing:
            for name in node.output:
                for reader in self.readers.get(name, []):
                    alone = len(self.readers[name]) == 1 and name not in self.results
                    if id(reader) in self._places and (quantized or (reader.op_type in _ACTIVATIONS and alone)):
                        joined[_root(joined, id(reader))] = _root(joined, id(node))
        found: dict[int, list[str]] = {}
        for node in self.nodes:
            if id(node) in self._places:
                found.setdefault(_root(joined, id(node)), []).append(node.name)
            elif self._stands_alone(node):
                found[id(node)] = [node.name]
        return [tuple(names) for names in found.values()]

    def part(self, names: Collection[str], *, quantizers: bool = False) -> Part | None:
        """The ops of these names as a file; None where the file has none of them.

        Its inputs and outputs are the integers that it reads and writes. With `quantizers` they are float, and
        quantizers stand between.
        """
        chosen = [n for n in self.nodes if n.name in names and (id(n) in self._places or self._stands_alone(n))]
        if not chosen:
            return None
        return _Cut(self, chosen, quantizers=quantizers).part()

    @cached_property
    def _places(self) -> set[int]:
        return {id(n) for n in self.computing}

    def _stands_alone(self, node: onnx.NodeProto) -> bool:
        """Whether a quantizer belongs to no op: at an input of the network, or in front of one of its outputs."""
        if node.op_type == "QuantizeLinear" and node.output[0] in self.integers:
            source = self.producer.get(node.input[0])
            return source is None or id(source) in self.feeding
        return id(node) in self.feeding and node.output[0] in self.results

    def users(self, name: str) -> Iterator[onnx.NodeProto | None]:
        """The ops that compute with these integers; None for an output of the network."""
        if name in self.results:
            yield None
        for reader in self.readers.get(name, []):
            if id(reader) not in self.feeding:
                yield reader
                continue
            for result in reader.output:
                yield from self.users(result)

    def value(self, name: str) -> onnx.ValueInfoProto:
        """The type and shape of a tensor. Raises UnsupportedError where the file does not tell."""
        found = self.types.get(name)
        if found is None or any(not d.HasField("dim_value") for d in found.type.tensor_type.shape.dim):
            raise UnsupportedError(f"the shape of the tensor {name!r} does not follow from the file at a fixed batch")
        return found


class _Cut:
    """One part while it is put together."""

    def __init__(self, file: OnnxLayers, chosen: list[onnx.NodeProto], *, quantizers: bool) -> None:
        self.file, self.chosen, self.quantizers = file, chosen, quantizers
        self.held = {id(n) for n in chosen}
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.outputs: dict[str, onnx.ValueInfoProto] = {}
        self.wanted: dict[int, onnx.NodeProto] = {id(n): n for n in chosen}
        self.before: list[onnx.NodeProto] = []
        self.behind: list[onnx.NodeProto] = []

    def part(self) -> Part:
        for node in self.chosen:
            for name in node.input:
                self.read(name)
        for node in self.chosen:
            for name in node.output:
                self.write(name)
        nodes = [*self.before, *(n for n in self.file.nodes if id(n) in self.wanted), *self.behind]
        read = {name for n in nodes for name in n.input}
        graph = helper.make_graph(
            nodes, "part", list(self.inputs.values()), list(self.outputs.values()),
            [t for name, t in self.file.initializers.items() if name in read],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=self.file.model.opset_import)
        model.ir_version = self.file.model.ir_version
        heads = [n for n in self.chosen if n.op_type in WEIGHTED] or self.chosen
        own = [n for n in nodes if id(n) in self.wanted]
        return Part(
            name=heads[0].name, ops=tuple(n.name for n in self.chosen), what=_words(self.file, self.chosen, heads[0]),
            signature=_signature(self.file, own, self.inputs), model=model,
        )  # fmt: skip

    def read(self, name: str) -> None:
        """Find where a tensor comes from: the part itself, a constant, integers, or float values of another part."""
        producer = self.file.producer.get(name)
        if not name or name in self.file.initializers or (producer is not None and id(producer) in self.wanted):
            return
        if producer is not None and (name in self.file.constants or id(producer) in self.file.feeding):
            self.wanted[id(producer)] = producer
            for source in producer.input:
                self.read(source)
        elif producer is not None and producer.op_type == "QuantizeLinear":
            if self._made_here(producer.input[0]):
                self._hold(producer)
            else:
                self._bordered(name, producer, into=self.inputs)
        else:
            self.inputs[name] = self.file.value(name)

    def write(self, name: str) -> None:
        """Hand a tensor on: as integers to each quantizer, as floats to all else that reads it outside."""
        if name in self.file.integers:  # a quantizer that is a part of its own
            self._bordered(name, self.file.producer[name], into=self.outputs)
            return
        readers = self.file.readers.get(name, [])
        for reader in readers:
            if reader.op_type == "QuantizeLinear" and reader.input[0] == name:
                self._hold(reader)
                if any(user is None or id(user) not in self.held for user in self.file.users(reader.output[0])):
                    self._bordered(reader.output[0], reader, into=self.outputs)
            elif id(reader) not in self.held:
                self.outputs[name] = self.file.value(name)
        if name in self.file.results:
            self.outputs[name] = self.file.value(name)

    def _made_here(self, name: str) -> bool:
        producer = self.file.producer.get(name)
        return producer is not None and id(producer) in self.held

    def _hold(self, quantizer: onnx.NodeProto) -> None:
        """A quantizer between ops of this part, or behind them."""
        self.wanted[id(quantizer)] = quantizer
        for source in quantizer.input[1:]:
            self.read(source)

    def _bordered(self, name: str, quantizer: onnx.NodeProto, *, into: dict[str, onnx.ValueInfoProto]) -> None:
        """An input or output of integers; with `quantizers` a float one and the quantizer between."""
        shape = [d.dim_value for d in self.file.value(quantizer.input[0]).type.tensor_type.shape.dim]
        zero_point = quantizer.input[2] if len(quantizer.input) > 2 else ""
        if not self.quantizers:
            kind = self.file.initializers[zero_point].data_type if zero_point in self.file.initializers else 2
            into[name] = helper.make_tensor_value_info(name, kind, shape)
            return
        border = f"{name}{FLOAT_SIDE}"
        if border in into:
            return
        into[border] = helper.make_tensor_value_info(border, onnx.TensorProto.FLOAT, shape)
        node = onnx.NodeProto()
        node.CopyFrom(quantizer)
        node.name = border
        for source in quantizer.input[1:]:
            self.read(source)
        if into is self.inputs:
            node.input[0] = border
            self.before.append(node)
        else:
            axes = [a for a in quantizer.attribute if a.name in ("axis", "block_size")]
            node.op_type, node.input[0], node.output[0] = "DequantizeLinear", name, border
            del node.attribute[:]
            node.attribute.extend(axes)
            self.behind.append(node)


def _at_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy whose inputs have this batch, and where shapes that were computed are constants."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    constants = {t.name for t in fixed.graph.initializer}
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = _with_shapes(fixed)
    types = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in inferred.graph.node:
        if node.op_type in _SHAPED_BY and node.input[1] not in constants and node.output[0] in types:
            dims = types[node.output[0]].type.tensor_type.shape.dim
            if all(d.HasField("dim_value") for d in dims):
                name = f"{node.name}.shape"
                shape = np.array([d.dim_value for d in dims], np.int64)
                inferred.graph.initializer.append(numpy_helper.from_array(shape, name))
                node.input[1] = name
    _drop_unread(inferred.graph)
    return inferred


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer all shapes; behind ONNX Runtime's MatMulNBits, which onnx does not know, they follow from its N."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    types = {
        v.name: v for v in (*graph.input, *graph.value_info, *graph.output) if v.type.tensor_type.HasField("shape")
    }
    for node in graph.node:
        if node.op_type != "MatMulNBits" or node.output[0] in types or node.input[0] not in types:
            continue
        kind = types[node.input[0]].type.tensor_type
        columns = next(a.i for a in node.attribute if a.name == "N")
        sizes = [*(d.dim_value for d in kind.shape.dim[:-1]), columns]
        found = helper.make_tensor_value_info(node.output[0], kind.elem_type, sizes)
        result = next((v for v in graph.output if v.name == node.output[0]), None)
        if result is None:
            graph.value_info.append(found)
        else:
            result.CopyFrom(found)
        return _with_shapes(inferred)  # what is behind follows now
    return inferred


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove ops whose results nobody reads: those that computed shapes."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in wanted for name in node.output):
            wanted.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _root(joined: dict[int, int], place: int) -> int:
    while place in joined and joined[place] != place:
        place = joined[place]
    return place


def _words(file: OnnxLayers, chosen: Sequence[onnx.NodeProto], head: onnx.NodeProto) -> str:
    """`Conv 3 × 3 / 2, 64 → 128, groups 2, Relu, reads 1 × 64 × 56 × 56`."""
    text = [head.op_type]
    weight = next((d for name in head.input[1:2] if (d := _dims(file, name))), ())
    if head.op_type in ("Conv", "ConvTranspose") and len(weight) > 2:
        attributes = {a.name: helper.get_attribute_value(a) for a in head.attribute}
        strides = tuple(attributes.get("strides", (1,)))
        stride = "" if set(strides) == {1} else f" / {' × '.join(map(str, dict.fromkeys(strides)))}"
        groups = int(attributes.get("group", 1))
        ends = (weight[1] * groups, weight[0]) if head.op_type == "Conv" else (weight[0], weight[1] * groups)
        text = [f"{head.op_type} {' × '.join(map(str, weight[2:]))}{stride}", f"{ends[0]} → {ends[1]}"]
        text += [f"groups {groups}"] if groups > 1 else []
    elif head.op_type in WEIGHTED and len(weight) == 2 and head.input[1] in file.constants:
        text.append(f"{weight[1]} → {weight[0]}" if head.op_type == "Gemm" else f"{weight[0]} → {weight[1]}")
    others = [n.op_type for n in chosen if n is not head]
    text += [f"{others.count(kind)} {kind}" if others.count(kind) > 1 else kind for kind in dict.fromkeys(others)]
    shape = next((d for name in head.input if name not in file.constants and (d := _dims(file, name))), ())
    return ", ".join([*text, *([f"reads {' × '.join(map(str, shape))}"] if shape else [])])


def _dims(file: OnnxLayers, name: str) -> tuple[int, ...]:
    if name in file.initializers:
        return tuple(file.initializers[name].dims)
    found = file.types.get(name)
    return () if found is None else tuple(d.dim_value for d in found.type.tensor_type.shape.dim)


def _signature(file: OnnxLayers, nodes: Iterable[onnx.NodeProto], inputs: dict[str, onnx.ValueInfoProto]) -> str:
    """A hash of ops, attributes, types and shapes, and of those values that decide which kernel runs."""
    nodes = list(nodes)
    read = [name for n in nodes for name in n.input if name in inputs or f"{name}{FLOAT_SIDE}" in inputs]
    numbers = {name: f"input {i} {_dims(file, name)}" for i, name in enumerate(dict.fromkeys(read))}
    lines = []
    for node in nodes:
        operands = [numbers[x] if x in numbers else _constant(file, node, i, x) for i, x in enumerate(node.input)]
        attributes = sorted(f"{a.name}={helper.get_attribute_value(a)}" for a in node.attribute if not a.HasField("t"))
        lines.append(" ".join([node.op_type, *attributes, *operands, *_widest(file, node)]))
        numbers |= {name: f"%{len(numbers) + i}" for i, name in enumerate(node.output)}
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _constant(file: OnnxLayers, node: onnx.NodeProto, place: int, name: str) -> str:
    tensor = file.initializers.get(name)
    if tensor is None:
        return "-"
    text = f"{onnx.TensorProto.DataType.Name(tensor.data_type)}{list(tensor.dims)}"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and place == 2 and not tensor.dims:
        value, lowest = int(numpy_helper.to_array(tensor)), 0 if tensor.data_type in (2, 4) else -128
        return f"{text} {'lowest' if value == lowest else 'other'}"
    small = int(np.prod(tensor.dims)) <= 8
    shapes = node.op_type in (*_SHAPED_BY, "Clip", "Slice", "Pad", "Squeeze", "Unsqueeze", "Resize")
    return f"{text} {numpy_helper.to_array(tensor).tolist()}" if small and shapes and place > 0 else text


def _widest(file: OnnxLayers, node: onnx.NodeProto) -> Iterator[str]:
    """Whether a float Clip limits more than the quantizer behind it does: engines leave it out where it does not."""
    if node.op_type != "Clip" or node.input[0] in file.integers:
        return
    for reader in file.readers.get(node.output[0], []):
        if reader.op_type == "QuantizeLinear" and all(x in file.initializers for x in reader.input[1:3]):
            scale, zero_point = (numpy_helper.to_array(file.initializers[x]) for x in reader.input[1:3])
            limits: Any = np.iinfo(zero_point.dtype)
            low, high = ((limit - int(zero_point)) * float(scale) for limit in (limits.min, limits.max))
            ends = [float(numpy_helper.to_array(file.initializers[x])) for x in node.input[1:3] if x]
            yield "covers" if len(ends) == 2 and ends[0] <= low and high <= ends[1] * (1 + 1e-6) else "clips"
