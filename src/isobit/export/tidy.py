"""Tidy an exported graph: names that a person can follow, and paddings inside the convolutions that they feed."""

import ast
import re
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from isobit.export.linear_layers import KEEPS_SHAPE, constant

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_LAYERS = ("deployed_", "_empty_nn_module_stack")
"""How names of scopes begin that are no layer of the user's."""


def tidy(model: ir.Model, *, layers: Collection[str] = (), quantized: bool = False) -> None:
    """Apply all clean-ups in place. `layers` are the names under which the user knows the layers."""
    if quantized:
        hide_batch(model.graph)
    merge_pads(model.graph)
    merge_slices(model.graph)
    reshape_last(model.graph)
    name_nodes(model.graph, layers)
    name_batch(model.graph)
    forget_tracing(model)


def name_nodes(graph: ir.Graph, layers: Collection[str]) -> None:
    """Name each computing node by its layer: "layer1.0.conv1", or "layer1.0.add" for a function of that block."""
    taken: dict[str, int] = {}
    weighted = {_path(node) for node in graph if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")}
    for node in graph:
        scopes = node.metadata_props.get(_SCOPES)
        if scopes is None:
            continue
        path, operation = _scope(ast.literal_eval(scopes))
        function = re.sub(r"_\d+$", "", operation)
        name = path if path in layers else f"{path}.{function}".lstrip(".")
        beside = path in weighted and node.op_type in ("Reshape", "Transpose", "Add")
        if beside or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            name = f"{path}.{node.op_type}".lstrip(".")
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}:{taken[name]}"


def _path(node: ir.Node) -> str | None:
    scopes = node.metadata_props.get(_SCOPES)
    return None if scopes is None else _scope(ast.literal_eval(scopes))[0]


def name_batch(graph: ir.Graph) -> None:
    """Call the dynamic first dimension of inputs and outputs "batch" in place of the tracer's symbol."""
    first = [value.shape[0] for value in graph.inputs if value.shape is not None and len(value.shape)]
    symbols = {str(size) for size in first if not isinstance(size, int)}
    for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None and len(value.shape) and str(value.shape[0]) in symbols:
            value.shape = ir.Shape(["batch", *value.shape[1:]])


def forget_tracing(model: ir.Model) -> None:
    """Drop what the tracer noted at each node: source lines and folders of the machine that exported."""
    for holder in (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.initializers.values()):
        holder.metadata_props.clear()
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()


def _scope(scopes: list[str]) -> tuple[str, str]:
    """The dotted path of the module that a node belongs to, and the operation's own name."""
    inside = [s for s in scopes[:-1] if s and not s.startswith(_NO_LAYERS)]
    return (inside[-1] if inside else ""), scopes[-1]


def merge_pads(graph: ir.Graph) -> int:
    """Move a zero Pad of height and width into the Conv that alone reads it; returns how many.

    ONNX convolutions pad each side by its own amount, so that TensorFlow's asymmetric padding needs no op.
    """
    count = 0
    for pad in [n for n in graph if n.op_type == "Pad"]:
        amounts = _constant_pads(pad)
        uses = list(pad.outputs[0].uses())
        if amounts is None or len(uses) != 1 or pad.outputs[0].is_graph_output():
            continue
        conv, index = uses[0]
        if (
            conv.op_type != "Conv"
            or index != 0
            or ("auto_pad" in conv.attributes and conv.attributes["auto_pad"].as_string() != "NOTSET")
        ):
            continue
        spatial = len(amounts) // 2 - 2
        own = list(conv.attributes["pads"].as_ints()) if "pads" in conv.attributes else [0] * (2 * spatial)
        extra = amounts[2 : 2 + spatial] + amounts[2 + spatial + 2 :]
        conv.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, extra, strict=True)])
        conv.replace_input_with(0, pad.inputs[0])
        graph.remove(pad, safe=True)
        count += 1
    return count


def merge_slices(graph: ir.Graph) -> int:
    """Make one Slice of two in a row along different axes, as `x[:, :, ::2, ::2]` is traced; returns how many."""
    count = 0
    for second in [n for n in graph if n.op_type == "Slice"]:
        first = second.inputs[0].producer() if second.inputs[0] is not None else None
        if first is None or first.op_type != "Slice" or first.outputs[0].is_graph_output():
            continue
        limits, more = _slice_limits(first), _slice_limits(second)
        alone = len(list(first.outputs[0].uses())) == 1
        if limits is None or more is None or not alone or set(limits[2]) & set(more[2]):
            continue
        second.replace_input_with(0, first.inputs[0])
        for number, (a, b) in enumerate(zip(limits, more, strict=True), start=1):
            name = f"{second.outputs[0].name}.{('starts', 'ends', 'axes', 'steps')[number - 1]}"
            value = ir.Value(name=name, const_value=ir.tensor([*a, *b], dtype=ir.DataType.INT64, name=name))
            graph.register_initializer(value)
            second.replace_input_with(number, value)
        graph.remove(first, safe=True)
        count += 1
    return count


def _slice_limits(node: ir.Node) -> list[list[int]] | None:
    """Starts, ends, axes from the first on, and steps; None where one is not constant or not given."""
    if len(node.inputs) != 5:
        return None
    found = [None if v is None else ir.convenience.get_const_tensor(v) for v in node.inputs[1:]]
    if any(f is None for f in found):
        return None
    starts, ends, axes, steps = ([int(v) for v in f.numpy().reshape(-1)] for f in found if f is not None)
    return None if min(axes) < 0 else [starts, ends, axes, steps]


def hide_batch(graph: ir.Graph) -> int:
    """Read the size of the batch from all sizes times 1, 0, 0, …; returns how many Shape ops read it.

    OpenVINO 2026.4 takes a size that it knows by name from any tensor of that size. Where that is the result of a
    convolution with a quantizer behind, it computes all its channels with the bias of the first
    (`tests/engines/test_openvino.py`). Of a product it knows no name.
    """
    count = 0
    for node in [n for n in graph if n.op_type == "Shape"]:
        source, size = node.inputs[0], node.outputs[0]
        limits = [node.attributes[k].as_int() if k in node.attributes else None for k in ("start", "end")]
        if source is None or source.shape is None or limits not in ([0, 1], [None, 1]) or size.is_graph_output():
            continue
        constants = {"first": [1] + [0] * (len(source.shape) - 1), "from": [0], "to": [1]}
        values = {k: constant(graph, f"{size.name}.{k}", np.array(v, np.int64)) for k, v in constants.items()}
        sizes = ir.node("Shape", [source], metadata_props=dict(node.metadata_props))
        first = ir.node("Mul", [sizes.outputs[0], values["first"]], metadata_props=dict(node.metadata_props))
        cut = [first.outputs[0], values["from"], values["to"]]
        last = ir.node("Slice", cut, metadata_props=dict(node.metadata_props))
        for made, word in ((sizes, "sizes"), (first, "masked")):
            made.outputs[0].name = f"{size.name}.{word}"
            made.outputs[0].dtype, made.outputs[0].shape = ir.DataType.INT64, ir.Shape([len(source.shape)])
        last.outputs[0].type, last.outputs[0].shape = size.type, size.shape
        graph.insert_before(node, [sizes, first, last])
        size.replace_all_uses_with(last.outputs[0])
        graph.remove(node, safe=True)
        last.outputs[0].name = size.name
        count += 1
    return count


def reshape_last(graph: ir.Graph) -> int:
    """Let Gemm → Reshape → Gelu → QuantizeLinear … be Gemm → Gelu → QuantizeLinear … → Reshape; returns how many moved.

    A linear layer on more than two dimensions is a Gemm between two reshapes. An engine fuses what follows the layer
    only where it follows at once.
    """
    count = 0
    for reshape in [n for n in graph if n.op_type == "Reshape"]:
        while (following := _keeps_shape_behind(reshape)) is not None:
            _swap(graph, reshape, following)
            count += 1
    return count


def _keeps_shape_behind(reshape: ir.Node) -> ir.Node | None:
    """The one reader of a reshape behind a Gemm, where it does the same to each value whatever the shape."""
    source, shaped = reshape.inputs[0], reshape.outputs[0]
    uses = list(shaped.uses())
    if source is None or len(uses) != 1 or shaped.is_graph_output():
        return None
    reader = uses[0].node
    per_tensor = all(v is None or (v.shape is not None and not len(v.shape)) for v in reader.inputs[1:])
    if reader.op_type not in KEEPS_SHAPE or not per_tensor:
        return None
    producer = source.producer()
    while producer is not None and producer.op_type in KEEPS_SHAPE and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return reader if producer is not None and producer.op_type == "Gemm" else None


def _swap(graph: ir.Graph, reshape: ir.Node, following: ir.Node) -> None:
    """Reshape → op becomes op → Reshape; what the two make together keeps its name where it leaves the graph."""
    source, shaped, result = reshape.inputs[0], reshape.outputs[0], following.outputs[0]
    assert source is not None
    if result.is_graph_output():
        names = result.name, shaped.name
        result.name = None
        shaped.name, result.name = names
    result.replace_all_uses_with(shaped, replace_graph_outputs=True)
    following.replace_input_with(0, source)
    reshape.replace_input_with(0, result)
    result.shape, shaped.type = source.shape, result.type
    graph.remove(following)
    graph.insert_before(reshape, following)


def _constant_pads(pad: ir.Node) -> list[int] | None:
    """The amounts of a zero padding that leaves batch and channels alone, else None."""
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    amounts = ir.convenience.get_const_tensor(pad.inputs[1]) if pad.inputs[1] is not None else None
    if mode != "constant" or amounts is None:
        return None
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if value is not None:
        constant = ir.convenience.get_const_tensor(value)
        if constant is None or float(constant.numpy()) != 0.0:
            return None
    found = [int(a) for a in amounts.numpy()]
    half = len(found) // 2
    if any(found[i] for i in (0, 1, half, half + 1)) or any(a < 0 for a in found):
        return None
    return found
