"""PT2 programs as modules of torch.fx: built from what `read_pt2` gives, and saved as a PT2 archive."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.onnx_file import first_line
from isobit.core.pt2_file import METADATA, Call, Pt2, Ref
from isobit.core.quiet import quiet

QUANTIZERS = frozenset(
    f"quantized_decomposed.{name}.default"
    for name in ("quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel")
)
"""The ops that PT2E puts around those of ATen."""

OPS = QUANTIZERS | {
    f"aten.{name}"
    for name in (
        "_to_copy.default", "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "add.Tensor", "add_.Tensor",
        "alias.default", "avg_pool2d.default", "batch_norm.default", "cat.default", "clamp.default", "clone.default",
        "constant_pad_nd.default", "contiguous.default", "conv1d.default", "conv2d.default", "conv3d.default",
        "conv_transpose1d.default", "conv_transpose2d.input", "detach.default", "div.Tensor", "dropout.default",
        "embedding.default", "eq.Tensor", "erf.default", "expand.default", "flatten.using_ints", "gelu.default",
        "hardsigmoid.default", "hardswish.default", "hardswish_.default", "hardtanh.default", "hardtanh_.default",
        "isnan.default", "layer_norm.default", "leaky_relu.default", "linear.default", "matmul.default",
        "max_pool1d.default", "max_pool2d.default", "mean.dim", "minimum.default", "mul.Tensor", "pad.default",
        "permute.default", "relu.default", "relu6.default", "relu6_.default", "relu_.default", "reshape.default",
        "select.int", "sigmoid.default", "silu.default", "slice.Tensor", "softmax.int", "sqrt.default", "squeeze.dim",
        "sub.Tensor", "sym_size.int", "tanh.default", "to.dtype", "transpose.int", "unsqueeze.default",
        "view.default", "where.self",
    )
}  # fmt: skip
"""The ops that isobit reads and runs: each is a function of its arguments that opens no file."""

_NAME = "isobit.name"


def module_of(program: Pt2, *, outputs: Sequence[str] | None = None) -> fx.GraphModule:
    """The program as a module that returns what the program does, or a tuple of the tensors `outputs`.

    Raises UnsupportedError for an op that isobit does not know, ArtifactError for arguments that it does not take.
    """
    graph = fx.Graph()
    nodes = {i.name: graph.placeholder(i.name) for i in program.inputs}
    root: dict[str, Tensor] = {}
    for call in program.calls:
        function = op_of(call)
        for name in _constants(call, program):
            if name not in nodes:
                root[name] = program.constants[name]
                nodes[name] = graph.create_node("get_attr", name, name=name)
        arguments = {key: _with_nodes(value, nodes) for key, value in call.arguments.items()}
        positional = tuple(v for key, v in arguments.items() if key not in call.keywords)
        keywords = {key: v for key, v in arguments.items() if key in call.keywords and v is not None}
        try:
            node = graph.create_node("call_function", function, positional, keywords, name=call.results[0])
        except Exception as error:  # of torch.fx, for values that no graph holds
            raise ArtifactError(f"{call.results[0]} ({call.target}) is damaged: {first_line(error)}") from error
        if len(call.results) != 1:
            raise UnsupportedError(f"{call.results[0]} ({call.target}) gives several results")
        nodes[call.results[0]] = node
    wanted = program.outputs if outputs is None else outputs
    for name in wanted:
        if name in program.constants and name not in nodes:
            root[name] = program.constants[name]
            nodes[name] = graph.create_node("get_attr", name, name=name)
    found = tuple(nodes[name] for name in wanted)
    graph.output(found[0] if outputs is None and len(found) == 1 else found)
    return fx.GraphModule(root, graph)


def op_of(call: Call) -> Any:
    """The op of a call. Raises UnsupportedError for one that isobit does not know."""
    if call.target not in OPS:
        raise UnsupportedError(f"{call.results[0]}: isobit does not know the op {call.target}")
    namespace, name, overload = call.target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def saved(
    module: fx.GraphModule,
    example: tuple[Tensor, ...],
    *,
    dynamic: Sequence[bool],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A PT2 archive of a module, such as `torch.export.load` takes it: graph and tensors alone.

    `dynamic` says of each input whether its first size may change. What an exporter leaves beside the graph (example
    inputs, source lines and paths of this machine) is left out, so that equal programs make equal files.
    Raises UnsupportedError where PyTorch cannot export it.
    """
    program = exported(module, example, dynamic=dynamic)
    program._example_inputs = None
    buffer = io.BytesIO()
    with quiet("torch.export"):
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(dict(metadata or {}), sort_keys=True)})
    return buffer.getvalue()


def exported(module: fx.GraphModule, example: tuple[Tensor, ...], *, dynamic: Sequence[bool]) -> Any:
    """`torch.export.export` of a module; its nodes have the names that they have in the module."""
    for node in module.graph.nodes:
        node.meta["custom"] = {_NAME: node.name}  # the exporter hands this on
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if d else None for d in dynamic)
    with quiet("torch.export"), torch.no_grad():
        try:
            program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # PyTorch's own, of any kind
            raise UnsupportedError(f"PyTorch cannot export the network: {first_line(error)}") from error
    _rename(program)
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    return program


def _rename(program: Any) -> None:
    """Give ops the names that they had in the module; one that became several ops gives its name to the last."""
    called = [node for node in program.graph.nodes if node.op == "call_function"]
    taken = {node.name for node in program.graph.nodes if node.op != "call_function"}
    names: dict[str, str] = {}
    for node in reversed(called):
        name = wanted = str(node.meta.get("custom", {}).get(_NAME, node.name))
        number = 1
        while name in taken:
            name, number = f"{wanted}_before_{number}", number + 1
        taken.add(name)
        names[node.name] = name
    for node in called:
        node.name = names[node.name]
    for spec in program.graph_signature.output_specs:
        spec.arg.name = names.get(spec.arg.name, spec.arg.name)


def _constants(call: Call, program: Pt2) -> list[str]:
    found = []
    for value in call.arguments.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Ref) and each.name in program.constants:
                found.append(each.name)
    return found


def _with_nodes(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_with_nodes(v, nodes) for v in value]
    return nodes[value.name] if isinstance(value, Ref) else value
