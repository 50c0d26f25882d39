"""How large the tensors of an ONNX graph get, and how long it computes, for one sample: before anything runs."""

from math import prod

import onnx
from onnx import GraphProto, ModelProto, TensorProto

from isobit.core.errors import ArtifactError
from isobit.core.onnx_checks import BITS, DIMENSION

TENSOR_BYTES = 4 << 30
"""Bytes of one tensor at most, for one sample."""

PEAK_BYTES = 16 << 30
"""Bytes of all tensors that wait for a reader at once at most, for one sample."""

PRODUCTS = 10**13
"""Multiplications and comparisons in windows of one op at most, for one sample: hours on one core."""

_SMALL = 4096
"""Bytes up to which a constant goes into shape inference: it may be a shape."""


def check_sizes(model: ModelProto) -> None:
    """Raise ArtifactError for shapes that contradict each other, and for ops that need too much of a machine.

    Sizes that the file leaves open, such as the batch, count as 1. Raises InferenceError where onnx finds that
    shapes do not fit.
    """
    _check_values(model.graph)
    skeleton = _skeleton(model)
    onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True)
    inferred = onnx.shape_inference.infer_shapes(_one_sample(skeleton), data_prop=True).graph
    shapes = {t.name: (list(t.dims), t.data_type) for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            sizes = [d.dim_value if d.HasField("dim_value") else 1 for d in tensor.shape.dim]
            shapes.setdefault(value.name, (sizes, tensor.elem_type))
    for value in inferred.input:
        _check_shape(value.name, "input", *shapes.get(value.name, ([], 1)))
    for node in inferred.node:
        for name in filter(None, node.output):
            if name in shapes:
                _check_shape(node.name, node.op_type, *shapes[name])
        _check_work(node, shapes)
        _check_channels(node, shapes)
    _check_peak(inferred, shapes)


def _check_values(graph: GraphProto) -> None:
    """Inputs and outputs have to be tensors of numbers with sizes that can be."""
    constants = {t.name for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.WhichOneof("value") not in ("tensor_type", None):
            raise ArtifactError(f"{value.name} is no tensor but a {value.type.WhichOneof('value')}")
        tensor = value.type.tensor_type
        if tensor.elem_type not in BITS and (value.name not in constants) and tensor.elem_type:
            raise ArtifactError(f"{value.name} has the element type {tensor.elem_type}, which is no number")
        wrong = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value") and not 0 <= d.dim_value <= DIMENSION]
        if wrong:
            raise ArtifactError(f"{value.name} has the size {wrong[0]}")
    if any(not v.type.tensor_type.elem_type or not v.type.tensor_type.HasField("shape") for v in graph.input):
        raise ArtifactError("an input has no type or shape")
    names = [v.name for v in graph.output]
    if len(set(names)) < len(names):
        raise ArtifactError("two outputs have the same name")


def _skeleton(model: ModelProto) -> ModelProto:
    """The model without the values of its large tensors: shape inference reads none of them."""
    graph = GraphProto(name=model.graph.name)
    graph.node.extend(model.graph.node)
    for field in ("input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if prod(tensor.dims) * BITS.get(tensor.data_type, 64) <= 8 * _SMALL:
            graph.initializer.append(tensor)
        else:
            graph.initializer.append(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    return ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)


def _one_sample(model: ModelProto) -> ModelProto:
    """All open sizes of the inputs are 1; what the file says of inner tensors and outputs is forgotten."""
    found = ModelProto()
    found.CopyFrom(model)
    for value in found.graph.input:
        for size in value.type.tensor_type.shape.dim:
            if not size.HasField("dim_value"):
                size.dim_value = 1
    del found.graph.value_info[:]
    for value in found.graph.output:
        value.type.tensor_type.ClearField("shape")
    return found


def _check_shape(name: str, op: str, sizes: list[int], kind: int) -> None:
    if any(size < 0 for size in sizes):
        raise ArtifactError(f"{name} ({op}) makes a tensor with the size {min(sizes)}")
    need = prod(sizes) * BITS.get(kind, 64) // 8
    if need > TENSOR_BYTES:
        shape = " × ".join(str(size) for size in sizes)
        raise ArtifactError(
            f"{name} ({op}) makes a tensor of {shape}: {need / 2**30:,.0f} GiB for one sample, "
            f"{TENSOR_BYTES >> 30} GiB are allowed"
        )


def _check_work(node: onnx.NodeProto, shapes: dict[str, tuple[list[int], int]]) -> None:
    """Bound the time of windows and products: elements of the result times what each of them reads."""
    results = prod(shapes[node.output[0]][0]) if node.output and node.output[0] in shapes else 1
    weight = shapes.get(node.input[1], ([], 1))[0] if len(node.input) > 1 else []
    match node.op_type:
        case "Conv" | "ConvTranspose":
            each = prod(weight[1:])
        case "MatMul" | "Gemm":
            each = max(weight, default=1)
        case _:
            each = prod(next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), []))
    if results * each > PRODUCTS:
        raise ArtifactError(
            f"{node.name} ({node.op_type}) needs {results * each:.0e} products for one sample, {PRODUCTS:.0e} are "
            "allowed"
        )


def _check_channels(node: onnx.NodeProto, shapes: dict[str, tuple[list[int], int]]) -> None:
    """A quantizer with several scales has one for each channel along its axis."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or not {*node.input[:2]} <= set(shapes):
        return
    (data, _), (scale, _) = shapes[node.input[0]], shapes[node.input[1]]
    attributes = {a.name: a.i for a in node.attribute}
    axis = attributes.get("axis", 1)
    if len(scale) != 1 or scale[0] == 1 or attributes.get("block_size", 0):
        return
    if not -len(data) <= axis < len(data) or data[axis] != scale[0]:
        sizes = " × ".join(str(size) for size in data)
        raise ArtifactError(
            f"{node.name} ({node.op_type}) has {scale[0]:,} scales along axis {axis} of a tensor of {sizes}"
        )


def _check_peak(graph: GraphProto, shapes: dict[str, tuple[list[int], int]]) -> None:
    """Run through the ops and hold each result until its last reader is done."""
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    last |= {value.name: len(graph.node) for value in graph.output}
    held: dict[str, int] = {}
    total = 0
    for i, node in enumerate(graph.node):
        for name in node.output:
            sizes, kind = shapes.get(name, ([], TensorProto.FLOAT))
            held[name] = prod(sizes) * BITS.get(kind, 64) // 8
            total += held[name]
        if total > PEAK_BYTES:
            raise ArtifactError(
                f"at {node.name} ({node.op_type}) {total / 2**30:,.0f} GiB of tensors wait for their readers, for one "
                f"sample; {PEAK_BYTES >> 30} GiB are allowed"
            )
        for name in {*node.input, *node.output}:
            if last.get(name, i) == i:
                total -= held.pop(name, 0)
