"""ONNX Runtime on the CPU."""

import importlib.util
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx

from isobit.core.arithmetic import FLOAT32_NEON, FLOAT32_PAIRS, FLOAT32_VNNI, Arithmetic
from isobit.core.errors import EngineError, MissingExtraError
from isobit.core.onnx_file import graph_inputs
from isobit.core.records import Kernel
from isobit.engines.base import COMPUTES, check_inputs, expose_tensors, failed, read_model, refused
from isobit.engines.instruction_set import instruction_set, saturates_pairs

_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
# Names that ONNX Runtime's fusions give to float kernels, and the op that each computes.
_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "MatMulIntegerToFloat": "MatMul"}


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxRuntime:
    """Settings of ONNX Runtime. Without `optimize` it fuses nothing: a float simulation of the file."""

    threads: int = 1
    optimize: bool = True

    @property
    def name(self) -> str:
        """See Engine."""
        return "onnxruntime"

    @property
    def format(self) -> str:
        """See Engine."""
        return "onnx"

    def missing(self) -> str:
        """See Engine."""
        return "" if importlib.util.find_spec("onnxruntime") else str(MissingExtraError("ONNX Runtime", "onnxruntime"))

    def version(self) -> str:
        """See Engine."""
        return f"onnxruntime {self._module().__version__}"

    def instruction_set(self) -> str:
        """Its kernels (MLAS) use what the processor has; ONEDNN_MAX_CPU_ISA does not reach them."""
        return instruction_set(onednn=False)

    @property
    def arithmetic(self) -> Arithmetic:
        """Float multipliers, half to even; before VNNI the sums of pairs of products saturate; Arm adds otherwise."""
        instructions = self.instruction_set()
        if instructions.startswith("NEON"):
            return FLOAT32_NEON
        return FLOAT32_PAIRS if saturates_pairs(instructions) else FLOAT32_VNNI

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> "OnnxRuntimeSession":
        """See Engine. The optimized graph, which is what runs, is read back for `kernels`."""
        runtime = self._module()
        original = read_model(path)
        model = expose_tensors(original, expose)
        with tempfile.TemporaryDirectory() as folder:
            options = runtime.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            levels = runtime.GraphOptimizationLevel
            options.graph_optimization_level = levels.ORT_ENABLE_ALL if self.optimize else levels.ORT_DISABLE_ALL
            try:
                session = runtime.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise _explained(refused("ONNX Runtime", path, error)) from error
            optimized = onnx.load(options.optimized_model_filepath)
        outputs = (*(o.name for o in original.graph.output), *expose)
        return OnnxRuntimeSession(Path(path), model, session, optimized, outputs)

    def _module(self) -> Any:
        if self.missing():
            raise MissingExtraError("ONNX Runtime", "onnxruntime")
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        return onnxruntime


def _explained(error: EngineError) -> EngineError:
    """What to do about the one refusal that is known to be ONNX Runtime's own fault (1.31)."""
    if "does not match y_zero_point type" not in str(error):
        return error
    return EngineError(
        f"{error}. It makes signed activations unsigned and forgets those moved over a Slice or Reshape: quantize "
        "with unsigned activations for ONNX Runtime"
    )


@final
class OnnxRuntimeSession:
    """A file in ONNX Runtime."""

    def __init__(
        self, path: Path, model: onnx.ModelProto, session: Any, optimized: onnx.ModelProto, outputs: tuple[str, ...]
    ) -> None:
        self._path, self._model, self._session, self._outputs = path, model, session, outputs
        self._precisions = _precisions(optimized)
        self._optimized = optimized

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Session."""
        return self._outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Session."""
        check_inputs(self._model, inputs)
        feeds = {value.name: x for value, x in zip(graph_inputs(self._model), inputs, strict=True)}
        try:
            return [np.asarray(y) for y in self._session.run(list(self._outputs), feeds)]
        except Exception as error:
            raise failed("ONNX Runtime", self._path, error) from error

    def kernels(self) -> tuple[Kernel, ...]:
        """The nodes of the optimized graph: each is one kernel call."""
        counts = Counter((node.op_type, p) for node, p in self._nodes())
        return tuple(Kernel(name=op, precision=p, count=n) for (op, p), n in sorted(counts.items()))

    def float_islands(self) -> tuple[str, ...]:
        """See Session. MatMulIntegerToFloat multiplies integers, but its result is float: it counts as an island."""
        found = [
            self._original(node)
            for node, precision in self._nodes()
            if precision in _FLOATS and _FUSED.get(node.op_type, node.op_type) in COMPUTES
        ]
        return tuple(dict.fromkeys(found))

    def _original(self, node: onnx.NodeProto) -> str:
        """The name of the file's op that became `node`: by its name, its result, or what its names begin with."""
        names = {name: n.name for n in self._model.graph.node for name in (*n.output, n.name)}
        candidates = (node.name, *node.output)
        exact = next((names[c] for c in candidates if c in names), "")
        parts = [name for name in names if name and any(c.startswith(name) for c in candidates)]
        return exact or (names[max(parts, key=len)] if parts else node.name or node.output[0])

    def _nodes(self) -> list[tuple[onnx.NodeProto, str]]:
        return [(node, p) for node, p in zip(self._optimized.graph.node, self._precisions, strict=True) if p]


def _precisions(model: onnx.ModelProto) -> list[str]:
    """The dtype in which each node computes: that of its result, or of its input where it quantizes."""
    types: dict[str, str] = {t.name: _dtype(t.data_type) for t in model.graph.initializer}
    types |= {v.name: _dtype(v.type.tensor_type.elem_type) for v in model.graph.input}
    found = []
    for node in model.graph.node:
        first = next((types[name] for name in node.input if name in types), "float32")
        match node.op_type:
            case "QuantizeLinear":
                result = types.get(node.input[2], "uint8") if len(node.input) > 2 else "uint8"
            case "DequantizeLinear" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul":
                result = "float32"
            case "QGemm":
                result = first if len(node.input) > 7 and node.input[7] else "float32"
            case "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero":
                result = "int64"
            case "Constant":
                value = next((a.t for a in node.attribute if a.name == "value"), None)
                result = _dtype(value.data_type) if value is not None else "float32"
            case "Cast":
                result = _dtype(next(a.i for a in node.attribute if a.name == "to"))
            case "QLinearConcat":
                result = types.get(node.input[1], first)
            case _:
                result = first
        types |= dict.fromkeys(node.output, result)
        found.append("" if node.op_type == "Constant" else result)
    return found


def _dtype(kind: int) -> str:
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name)
