"""Worker: Apache TVM, compiled for the processor that it runs on; LLVM is part of its wheel."""

import os
from collections import Counter
from typing import Any

import numpy as np

_COMPUTES = frozenset(
    {"add", "subtract", "multiply", "divide", "matmul", "maximum", "minimum", "clip", "concat", "mean", "sum"}
)  # fmt: skip
"""Relax ops, beside `nn.`'s, that compute."""

_ISLANDS = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Gemm", "GlobalAveragePool",
        "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "PRelu",
        "ReduceMean", "Relu", "Resize", "Sigmoid", "Softmax", "Sub",
    }
)  # fmt: skip
"""ONNX ops that compute: what `isobit.engines.base.COMPUTES` holds."""


class File:
    """A file in TVM's virtual machine."""

    inputs = None

    def __init__(self, path: str, threads: int) -> None:
        os.environ["TVM_NUM_THREADS"] = str(threads)
        import onnx
        import tvm
        from tvm import relax
        from tvm.relax.frontend.onnx import from_onnx

        model = onnx.load(path)
        module = from_onnx(model, keep_params_in_input=False)
        self.outputs = [output.name for output in model.graph.output]
        self.kernels = _kernels(module)
        self.islands = _islands(model)
        processor = tvm.target.codegen.llvm_get_system_cpu()
        compiled = tvm.compile(module, tvm.target.Target({"kind": "llvm", "mcpu": processor}))
        self.machine = relax.VirtualMachine(compiled, tvm.cpu())
        self.tensor = tvm.runtime.tensor

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """All outputs: one comes as it is, several in a list."""
        found = self.machine["main"](*(self.tensor(np.ascontiguousarray(x)) for x in inputs))
        several = [found] if len(self.outputs) == 1 else list(found)
        return [y.numpy() for y in several]


def _kernels(module: Any) -> list[tuple[str, str, int]]:
    """The ops of the imported network that compute, with the type of their first operand."""
    from tvm import relax

    counts: Counter[tuple[str, str]] = Counter()
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if not isinstance(call, relax.Call) or not hasattr(call.op, "name"):
                continue
            name = str(call.op.name).removeprefix("relax.")
            first = getattr(call.args[0], "struct_info", None) if len(call.args) else None
            if name in _COMPUTES or name.startswith("nn.") or name in ("quantize", "dequantize"):
                counts[name, str(getattr(first, "dtype", "float32"))] += 1
    return [(name, precision, n) for (name, precision), n in sorted(counts.items())]


def _islands(model: Any) -> list[str]:
    """The ops that compute and read floats: TVM fuses none of them into an integer kernel."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {t.name: t.data_type for t in graph.initializer}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, 0)
    found = [n for n in graph.node if n.op_type in _ISLANDS and types.get(n.input[0], 0) in floats]
    return [n.name or n.output[0] for n in found]


def load(path: str, expose: list[str], settings: dict[str, Any]) -> File:
    """The exposed tensors are outputs of the file already."""
    del expose
    return File(path, int(settings["threads"]))
