"""The float network that a vendor's tool takes beside the encodings: folded, repaired, its weights on their grids.

It is made from the deployed network by taking each QuantizeLinear and DequantizeLinear away, so that a tool which
rounds its weights and biases by the encodings finds the same integers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from torch import Tensor, fx, nn

from isobit.core.errors import UnsupportedError
from isobit.core.granularity import PerChannel, PerTensor, axis_of
from isobit.core.grid import Geometric
from isobit.core.qparams import QParams
from isobit.export.encodings import WEIGHTED, Encoding, Encodings
from isobit.export.octaves import Octaves, octaves_of, take_logarithms
from isobit.export.onnx_qdq import to_onnx
from isobit.export.tidy import tidy
from isobit.graph.convert import clamped_biases, convert, hash_integers
from isobit.graph.deployed import CodebookWeight, IntegerWeight
from isobit.graph.deployed_activations import (
    ActivationQuantizer,
    DynamicActivationQuantizer,
    GeometricQuantizer,
    LevelQuantizer,
)
from isobit.graph.deployed_float16 import Float16Quantizer, Float16Weight
from isobit.graph.insert import preparation
from isobit.graph.names import names

NOT_FLOAT = frozenset({"QuantizeLinear", "Shape"})
"""Readers of a quantized tensor that see none of its float values."""

MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Ops whose result holds the values of their first input."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class FloatNetwork:
    """An ONNX graph of floats, and the grids of its tensors by their names in it.

    `partly` are tensors that some op reads in float too: a residual branch, where the target quantizes the inputs of
    layers alone. `moved` are those that hold values of a quantized tensor in another order or shape. `octaves` are the
    grids of activations that have no encoding, since they are logarithmic. `notes` are on what every file of it lacks.
    """

    program: ir.Model
    encodings: Encodings
    octaves: Mapping[str, Octaves]
    partly: frozenset[str]
    moved: frozenset[str]
    target: str
    integers_sha256: str
    notes: tuple[str, ...]


def float_network(
    model: fx.GraphModule, example: tuple[Tensor, ...], *, what: str, logarithms: bool = False
) -> FloatNetwork:
    """The float network of a prepared model and its encodings; `what` is the format, for error texts.

    Raises UnsupportedError for grids that are not uniform, or with `logarithms` for those that are; for groups of
    weights and for dynamic ranges.
    """
    deployed = convert(model)
    integers_sha256 = hash_integers(deployed)
    if logarithms:
        take_logarithms(deployed, what)
    _check(deployed, what, "logarithms" if logarithms else "uniform grids")
    program = to_onnx(deployed, example)
    tidy(program, layers=set(names(model.graph).values()))
    outputs = [str(value.name) for value in program.graph.outputs]
    weights = _float_constants(program.graph, deployed)
    activations, partly = _float_activations(program.graph, deployed, what)
    moved = _moved(program.graph, activations)
    _forget_unused(program.graph)
    _name_all(program.graph, outputs)
    grids = {str(value.name): grid for value, grid in activations.items()}
    return FloatNetwork(
        program=program,
        encodings=Encodings(
            activations={name: grid for name, grid in grids.items() if isinstance(grid, Encoding)},
            weights={str(value.name): encoding for value, encoding in weights.items()},
        ),
        octaves={name: grid for name, grid in grids.items() if isinstance(grid, Octaves)},
        partly=frozenset(str(value.name) for value in partly),
        moved=frozenset(str(value.name) for value in moved),
        target=preparation(model).profile.name,
        integers_sha256=integers_sha256,
        notes=clamped_biases(deployed),
    )


def _check(deployed: nn.Module, what: str, grids: str) -> None:
    for name, module in deployed.named_modules():
        if isinstance(module, (CodebookWeight, LevelQuantizer, GeometricQuantizer, Float16Weight, Float16Quantizer)):
            raise UnsupportedError(f"{name}: {what} holds {grids} alone: export to the format onnx")
        if isinstance(module, DynamicActivationQuantizer):
            raise UnsupportedError(f"{name}: {what} holds no dynamic ranges: export to the format onnx")
        if isinstance(module, IntegerWeight) and module.block:
            raise UnsupportedError(f"{name}: {what} has no scales for groups of weights: export to the format onnx")


def _float_constants(graph: ir.Graph, deployed: nn.Module) -> dict[ir.Value, Encoding]:
    """Turn integer weights and biases into floats on the same grid; the encodings of the weights."""
    # Initializers that are equal were merged, so that a name does not say which layer one belongs to.
    known = {_key(m.q, m.scale, m.zero_point): m for m in deployed.modules() if isinstance(m, IntegerWeight)}
    found: dict[ir.Value, Encoding] = {}
    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        constants = [_constant(value) for value in node.inputs]
        if len(constants) != 3 or any(c is None for c in constants):
            continue
        q, scale, zero_point = (c for c in constants if c is not None)
        shape = [-1 if i == node.attributes["axis"].as_int() else 1 for i in range(q.ndim)] if scale.ndim else []
        k = q.astype(np.int64) - zero_point.astype(np.int64).reshape(shape)
        values = (k.astype(np.float64) * scale.reshape(shape)).astype(np.float32)
        name = f"{node.outputs[0].name}.float"
        value = ir.val(name, const_value=ir.tensor(values, name=name))
        graph.register_initializer(value)
        layer = known.get((q.tobytes(), scale.tobytes(), zero_point.tobytes()))
        if layer is not None:
            found[value] = encoding_of(layer.declared, layer.q.dim())
        node.outputs[0].replace_all_uses_with(value)
        graph.remove(node, safe=True)
    return found


def _float_activations(
    graph: ir.Graph, deployed: nn.Module, what: str
) -> tuple[dict[ir.Value, Encoding | Octaves], set[ir.Value]]:
    """Take the quantizers of activations out; their encodings, and which tensors are read in float too."""
    # As above: quantizers that are equal in all of these make the same integers.
    known = {
        (*_key(m.scale, m.zero_point), m.low, m.high): m
        for m in deployed.modules()
        if isinstance(m, ActivationQuantizer)
    }
    found: dict[ir.Value, Encoding | Octaves] = {}
    partly: set[ir.Value] = set()
    for quantize in [n for n in graph if n.op_type == "QuantizeLinear"]:
        chain = list(_chain(quantize))
        x, last = _given(quantize.inputs[0]), chain[-1]
        module = known[_stored(quantize, chain)]
        caps = next((_constant(n.inputs[1]) for n in chain if n.op_type == "Min"), None)
        if caps is not None:
            k = caps.astype(np.float32) - np.float32(int(module.zero_point))
            x = _capped(graph, x, k * module.scale.numpy(), quantize)
        elif x.is_graph_output() or any(reader.op_type not in NOT_FLOAT for reader, _ in x.uses()):
            partly.add(x)
        encoding = _grid_of(module)
        if x in found and not _same(found[x], encoding):
            raise UnsupportedError(f"{quantize.name}: {what} holds one grid for a tensor, and this one has two")
        found[x] = encoding
        last.outputs[0].replace_all_uses_with(x, replace_graph_outputs=True)
        for node in [*reversed(chain), quantize]:
            graph.remove(node, safe=True)
    return found, partly


def _grid_of(module: ActivationQuantizer) -> Encoding | Octaves:
    if isinstance(grid := module.declared.scheme.grid, Geometric):
        return octaves_of(module.declared.scale, grid, module.declared.scheme.bits)
    return encoding_of(module.declared, 0, non_negative=module.low >= int(module.zero_point))


def _moved(graph: ir.Graph, found: dict[ir.Value, Encoding | Octaves]) -> set[ir.Value]:
    """Give tensors that ops move the encoding of what they move; returns them."""
    moved: set[ir.Value] = set()
    for node in graph:
        if node.op_type in MOVES and node.inputs[0] in found and node.outputs[0] not in found:
            found[node.outputs[0]] = found[_given(node.inputs[0])]
            moved.add(node.outputs[0])
    return moved


def encoding_of(grid: QParams, dims: int, *, non_negative: bool = False) -> Encoding:
    """The encoding of a declared grid of a tensor with `dims` axes."""
    match grid.scheme.granularity:
        case PerTensor():
            axis = 0
        case PerChannel() as granularity:
            axis = axis_of(granularity, dims)
        case granularity:
            raise UnsupportedError(f"an encoding has one scale or one for each channel, not {granularity}")
    zero_point = grid.zero_point.cpu().numpy().astype(np.int32)
    return Encoding(
        bits=grid.scheme.bits, symmetric=grid.scheme.symmetric, axis=axis, non_negative=non_negative,
        scale=grid.scale.detach().cpu().numpy().astype(np.float32),
        lowest=grid.scheme.quant_min - zero_point, highest=grid.scheme.quant_max - zero_point,
    )  # fmt: skip


def _stored(quantize: ir.Node, chain: list[ir.Node]) -> tuple[bytes, bytes, int, int]:
    """What tells quantizers apart: scale, zero point and the levels that a Clip leaves."""
    scale, zero_point = (_constant(value) for value in quantize.inputs[1:3])
    assert scale is not None and zero_point is not None
    low, high = np.iinfo(zero_point.dtype).min, np.iinfo(zero_point.dtype).max
    for node in chain:
        if node.op_type == "Clip":
            ends = [_constant(value) for value in node.inputs[1:3]]
            low, high = (int(end) for end in ends if end is not None)
    return scale.tobytes(), zero_point.tobytes(), low, high


def _chain(quantize: ir.Node) -> Iterator[ir.Node]:
    """What stands between a QuantizeLinear and its DequantizeLinear, and that one."""
    node = quantize
    while node.op_type != "DequantizeLinear":
        ((node, _),) = node.outputs[0].uses()
        yield node


def _capped(graph: ir.Graph, x: ir.Value, limits: np.ndarray, before: ir.Node) -> ir.Value:
    """min(x, limits), as a float op: what the integers were limited to."""
    name = f"{before.name}.caps"
    caps = ir.val(name, const_value=ir.tensor(limits.astype(np.float32), name=name))
    graph.register_initializer(caps)
    node = ir.node("Min", [x, caps], name=f"{before.name}.cap".replace(".QuantizeLinear", ""))
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = str(node.name), x.type, x.shape
    graph.insert_before(before, node)
    return node.outputs[0]


def _forget_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _name_all(graph: ir.Graph, outputs: list[str]) -> None:
    """Name tensors by the op that makes them and constants by the layer that reads them, without colons, which several
    formats have for themselves; inputs and outputs keep their names."""
    taken = {str(value.name) for value in graph.inputs} | set(outputs)

    def free(name: str) -> str:
        found = name = name.replace(":", "_").replace(" ", "_")
        number = 2
        while found in taken:
            found, number = f"{name}_{number}", number + 1
        taken.add(found)
        return found

    for node in graph:
        node.name = (node.name or node.op_type.lower()).replace(":", "_")
        for output in node.outputs:
            output.name = free(node.name)
    for value, name in zip(graph.outputs, outputs, strict=True):
        if not value.is_graph_input():
            value.name = name
    named: set[ir.Value] = set()
    for node in graph:
        roles = (None, "weight", "bias") if node.op_type in WEIGHTED else ()
        for role, read in zip(roles, node.inputs, strict=False):
            if role and read is not None and str(read.name) in graph.initializers and read not in named:
                _rename(graph, read, free(f"{node.name}.{role}"))
                named.add(read)
    for other in [value for value in graph.initializers.values() if value not in named]:
        _rename(graph, other, free(str(other.name)))


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    del graph.initializers[str(value.name)]
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    graph.register_initializer(value)


def _key(*tensors: Tensor) -> tuple[bytes, ...]:
    return tuple(t.detach().cpu().contiguous().numpy().tobytes() for t in tensors)


def _same(a: Encoding | Octaves, b: Encoding | Octaves) -> bool:
    if isinstance(a, Octaves) or isinstance(b, Octaves):
        return a == b
    return a.bits == b.bits and all(
        np.array_equal(x, y) for x, y in ((a.scale, b.scale), (a.lowest, b.lowest), (a.highest, b.highest))
    )


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def whole_tensors(network: FloatNetwork, what: str) -> dict[str, Encoding]:
    """The encodings of activations, for a format that says of a tensor how all of its readers see it.

    Raises UnsupportedError where some read it in float.
    """
    if network.partly:
        raise UnsupportedError(
            f"{what} says of a whole tensor that it is quantized, and {min(network.partly)} is read in float too, as "
            f"the target {network.target} places it: export to the format onnx, or to one that names inputs of layers"
        )
    return dict(network.encodings.activations)
