"""Weights of fewer than 8 bits as bit planes in the file, and the ops that an engine turns them into bytes with once.

Bit k of the indices of all weights is one plane, 8 weights in a byte, so that b bits take b / 8 bytes a weight for any
b. The ops that unpack them read constants alone: an engine evaluates them while it loads the file and then finds the
weights as bytes in front of a DequantizeLinear, as in a file that is not packed. (Of ONNX's own types below a byte
engines read those of 4 bits alone, and compute in float with them.)
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from isobit.graph.convert import Levels

SAVES = 2048
"""Bytes that packing has to save: the ops that unpack a tensor take about 1,000."""


def pack_weights(model: ir.Model, levels: Mapping[str, Levels]) -> None:
    """Replace initializers, by name, with bit planes and a table of their levels, where that makes the file smaller."""
    shared: dict[str, ir.Value] = {}
    for name, of_weight in levels.items():
        value = model.graph.initializers.get(name)
        bits = max((len(of_weight.table) - 1).bit_length(), 1)
        if value is None or value.const_value is None:
            continue
        q = value.const_value.numpy()
        if bits < 8 and q.size * (8 - bits) // 8 >= SAVES:
            _replace(model.graph, value, q, of_weight, bits, shared)


def write_look_ups(model: ir.Model, names: Iterable[str]) -> None:
    """Let Cast and Gather read the indices of a codebook, by name, without the DequantizeLinear in between."""
    for name in names:
        index = model.graph.initializers.get(name)
        if index is None:
            continue
        for node in [user for user, _ in index.uses()]:
            readers = [reader for reader, _ in node.outputs[0].uses()]
            if node.op_type == "DequantizeLinear" and readers and all(r.op_type == "Cast" for r in readers):
                node.outputs[0].replace_all_uses_with(index)
                model.graph.remove(node, safe=True)


def write_casts(model: ir.Model) -> None:
    """Let a Cast read each float16 initializer, in place of the DequantizeLinear that the exporter left alone."""
    for value in list(model.graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT16:
            continue
        for node in [user for user, _ in value.uses() if user.op_type == "DequantizeLinear"]:
            cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)}, name=node.name)
            result, old = cast.outputs[0], node.outputs[0]
            result.name, result.type, result.shape = old.name, ir.TensorType(ir.DataType.FLOAT), value.shape
            model.graph.insert_before(node, cast)
            old.replace_all_uses_with(result)
            model.graph.remove(node, safe=True)


def planes(indices: np.ndarray, bits: int) -> np.ndarray:
    """The bit planes of indices below 2^bits, the lowest first: (bits, ceil(n / 8), 1), least significant bit first."""
    flat = indices.reshape(-1).astype(np.uint8)
    found = [np.packbits((flat >> k) & 1, bitorder="little") for k in range(bits)]
    return np.stack(found)[:, :, None]


def _replace(
    graph: ir.Graph, value: ir.Value, q: np.ndarray, of_weight: Levels, bits: int, shared: dict[str, ir.Value]
) -> None:
    name = value.name
    assert name is not None
    table, offset = of_weight.table, None if of_weight.offset is None else of_weight.offset.numpy()
    indices = np.searchsorted(np.array(table), q if offset is None else q + offset)
    rounded_up = -(-q.size // 8) * 8

    def constant(key: str, array: np.ndarray) -> ir.Value:
        if key not in shared:
            shared[key] = _initializer(graph, f"unpack.{key}", array)
        return shared[key]

    first = next(iter(value.uses())).node
    chain = _Chain(graph, before=first, name=name.removesuffix(".q"))
    x = _initializer(graph, f"{name}.planes", planes(indices, bits))
    x = chain.add("BitShift", [x, constant("shifts", np.arange(8, dtype=np.uint8))], direction="RIGHT")
    x = chain.add("BitwiseAnd", [x, constant("one", np.ones(1, np.uint8))])
    x = chain.add("Cast", [x], to=int(ir.DataType.INT32))
    if bits > 1:
        x = chain.add("Mul", [x, constant(f"powers_{bits}", (1 << np.arange(bits, dtype=np.int32))[:, None, None])])
        x = chain.add("ReduceSum", [x, constant("first_axis", np.zeros(1, np.int64))], keepdims=0)
    if rounded_up != q.size:
        x = chain.add("Reshape", [x, constant("flat", np.array([-1], np.int64))])
        ends = [constant("zero", np.zeros(1, np.int64)), _initializer(graph, f"{name}.size", np.array([q.size]))]
        x = chain.add("Slice", [x, *ends])
    shape = "x".join(map(str, q.shape))
    x = chain.add("Reshape", [x, constant(f"shape_{shape}", np.array(q.shape, np.int64))])
    if offset is not None:
        x = chain.add("Add", [x, _initializer(graph, f"{name}.lowest", table[0] - offset)])
        x = chain.add("Cast", [x], to=int(ir.DataType.INT8))
    elif table == tuple(range(len(table))):
        x = chain.add("Cast", [x], to=int(ir.DataType.UINT8 if q.dtype == np.uint8 else ir.DataType.INT8))
    else:
        levels = f"levels_{q.dtype}_{'_'.join(map(str, table))}"
        key = levels if len(levels) < 80 else f"levels_{len(shared)}"
        x = chain.add("Gather", [constant(key, np.array(table, q.dtype)), x])
    x.name, x.type, x.shape = f"{name}.bytes", value.type, value.shape
    value.replace_all_uses_with(x)
    del graph.initializers[name]


class _Chain:
    """Nodes, one behind the other, in front of the node that reads the last of them."""

    def __init__(self, graph: ir.Graph, *, before: ir.Node, name: str) -> None:
        self.graph, self.before, self.name = graph, before, name
        self.count = 0

    def add(self, op: str, inputs: list[ir.Value], **attributes: int | str) -> ir.Value:
        """The output of a new node."""
        node = ir.node(op, inputs, attributes=attributes)
        self.count += 1
        node.name = node.outputs[0].name = f"{self.name}.{self.count}"
        self.graph.insert_before(self.before, node)
        return node.outputs[0]


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
