"""Worker: QNN's backends through ONNX Runtime's plugin; the Linux wheel's HTP backend simulates the processor."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

_MOVES = frozenset({"QuantizeLinear", "DequantizeLinear", "Reshape", "Flatten", "Transpose", "Cast", "Identity"})
"""Ops that compute nothing: outside of QNN they are no island."""


_ABSORBED = frozenset({"Relu", "Clip"})
"""Ops that become part of the one in front of them."""


class File:
    """A file on QNN, one sample at a time: QNN takes fixed sizes alone, and as many samples as it likes best is one."""

    inputs = None

    def __init__(self, path: str, backend: str, threads: int) -> None:
        import onnxruntime

        content = Path(path).read_bytes()
        plain = onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        plain.log_severity_level = 4
        read = onnxruntime.InferenceSession(content, plain, providers=["CPUExecutionProvider"])
        shapes = [x.shape for x in read.get_inputs()]
        self.batch = self._batch(shapes)
        self.outputs = [y.name for y in read.get_outputs()]
        self.names = [x.name for x in read.get_inputs()]
        self.session = self._on_qnn(content, backend, threads)
        self.kernels, self.islands = self._assigned(rounded_ops(content))

    def _batch(self, shapes: list[list[int | str | None]]) -> str:
        """The symbol of the first dimension; empty where all sizes are fixed."""
        free = {size for shape in shapes for size in shape if not isinstance(size, int)}
        if not free:
            return ""
        (symbol, *others) = free
        first = all(shape and shape[0] == symbol and symbol not in shape[1:] for shape in shapes)
        if others or symbol is None or not first:
            raise ValueError("QNN takes fixed sizes: only the first dimension of all inputs, the batch, may be free")
        return str(symbol)

    def _on_qnn(self, content: bytes, backend: str, threads: int) -> Any:
        import onnxruntime
        import onnxruntime_qnn as qnn

        name = qnn.get_ep_name()
        onnxruntime.register_execution_provider_library(name, qnn.get_library_path())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self.batch:
            options.add_free_dimension_override_by_name(self.batch, 1)
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == name][:1]
        paths = {"htp": qnn.get_qnn_htp_path, "cpu": qnn.get_qnn_cpu_path}
        options.add_provider_for_devices(devices, {"backend_path": paths[backend]()})
        return onnxruntime.InferenceSession(content, options)

    def _assigned(self, rounded: dict[str, str]) -> tuple[list[tuple[str, str, int]], list[str]]:
        """What QNN computes, by op, and what was left to ONNX Runtime's own kernels.

        Float ops that QNN takes run in 16 bits there.
        """
        kernels: Counter[tuple[str, str]] = Counter()
        islands = []
        for part in self.session.get_provider_graph_assignment_info():
            on_qnn = part.ep_name.startswith("QNN")
            for node in part.get_nodes():
                name = str(node.name).split("_token_")[0]
                if on_qnn and node.op_type in _MOVES:
                    continue
                integer = on_qnn and name in rounded
                precision = rounded[name] if integer else "float16" if on_qnn else "float32"
                kernels[f"{'QNN' if on_qnn else 'CPU'} {node.op_type}", precision] += 1
                if not integer and node.op_type not in _MOVES:
                    islands.append(name)
        return [(name, precision, n) for (name, precision), n in sorted(kernels.items())], islands

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Sample by sample."""
        if not self.batch:
            return list(self.session.run(self.outputs, dict(zip(self.names, inputs, strict=True))))
        found = []
        for i in range(len(inputs[0])):
            feeds = {name: np.ascontiguousarray(x[i : i + 1]) for name, x in zip(self.names, inputs, strict=True)}
            found.append(self.session.run(self.outputs, feeds))
        return [np.concatenate(each) for each in zip(*found, strict=True)]


def rounded_ops(content: bytes) -> dict[str, str]:
    """The nodes whose inputs are dequantized and whose result is quantized, a Relu or Clip in between; its type."""
    import onnx

    graph = onnx.load_from_string(content).graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {t.name: t.data_type for t in graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t.data_type for n in graph.node if n.op_type == "Constant"}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_quantized(name: str) -> bool:
        found = readers.get(name, [])
        return bool(found) and all(
            n.op_type == "QuantizeLinear" or (n.op_type in _ABSORBED and is_quantized(n.output[0])) for n in found
        )

    def is_dequantized(name: str) -> bool:
        maker = makers.get(name)
        if maker is None:
            return False
        return maker.op_type == "DequantizeLinear" or (maker.op_type in _ABSORBED and is_dequantized(maker.input[0]))

    def is_rounded(node: Any) -> bool:
        given = [name for name in node.input if name and name not in constants]
        return is_quantized(node.output[0]) and (node.op_type in _ABSORBED or all(is_dequantized(n) for n in given))

    def type_behind(name: str) -> str:
        reader = readers[name][0]
        if reader.op_type != "QuantizeLinear":
            return type_behind(reader.output[0])
        number = constants.get(reader.input[2], 0) if len(reader.input) > 2 else 0
        return str(onnx.TensorProto.DataType.Name(number or onnx.TensorProto.UINT8)).lower()

    return {node.name: type_behind(node.output[0]) for node in graph.node if is_rounded(node)}


def load(path: str, expose: list[str], settings: dict[str, Any]) -> File:
    """The exposed tensors are outputs of the file already."""
    del expose
    return File(path, str(settings["backend"]), int(settings["threads"]))
