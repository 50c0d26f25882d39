"""OpenVINO on the CPU."""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx

from isobit.core.arithmetic import OPENVINO, Arithmetic
from isobit.core.errors import MissingExtraError
from isobit.core.records import Kernel
from isobit.engines.base import COMPUTES, check_inputs, expose_tensors, failed, read_model, refused
from isobit.engines.instruction_set import instruction_set, saturates_pairs

Shapes = tuple[tuple[int, ...], ...]

KEPT = 2
"""How many sizes of inputs stay compiled."""

_FLOATS = frozenset({"f32", "f16", "bf16", "f64"})
# Layer types of the CPU plugin's runtime model that compute.
_COMPUTES = frozenset(
    {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "Eltwise", "Pooling", "Concatenation", "Reduce",
     "Softmax", "Pad", "Interpolate", "MVN", "Subgraph"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenVino:
    """Settings of OpenVINO. Float ops run in float32: its own default on AMX, bfloat16, is no parity.

    With `fixed_sizes` a file is compiled for the sizes of the inputs that it gets, once for each. For inputs of any
    size OpenVINO 2026.4 merges a transposition into the convolution before a concatenation, and gets it wrong: the
    patches of a vision transformer.
    """

    threads: int = 1
    fixed_sizes: bool = False

    @property
    def name(self) -> str:
        """See Engine."""
        return "openvino-fixed" if self.fixed_sizes else "openvino"

    @property
    def advice(self) -> str:
        """What to try where its answers are wrong."""
        if self.fixed_sizes:
            return ""
        return (
            "OpenVINO 2026.4 computes some networks rightly only for fixed sizes: verify with openvino-fixed, "
            "and reshape the model before it is compiled"
        )

    @property
    def format(self) -> str:
        """See Engine."""
        return "onnx"

    def missing(self) -> str:
        """See Engine."""
        return "" if importlib.util.find_spec("openvino") else str(MissingExtraError("OpenVINO", "openvino"))

    def version(self) -> str:
        """See Engine."""
        return f"openvino {self._module().get_version()}"

    def instruction_set(self) -> str:
        """Its kernels are oneDNN's, so ONEDNN_MAX_CPU_ISA counts."""
        return instruction_set(onednn=True)

    @property
    def arithmetic(self) -> Arithmetic:
        """Multiply by the scale, add the float bias, round half to even."""
        return OPENVINO.before_vnni if saturates_pairs(self.instruction_set()) else OPENVINO

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> "OpenVinoSession":
        """See Engine. An exposed tensor can keep OpenVINO from fusing across it."""
        openvino = self._module()
        original = read_model(path)
        model = expose_tensors(original, expose)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        core = openvino.Core()

        def compile_for(shapes: Shapes | None) -> Any:
            try:
                read = core.read_model(model.SerializeToString())
                if shapes is not None:
                    read.reshape(dict(zip((x.any_name for x in read.inputs), map(list, shapes), strict=True)))
                return core.compile_model(read, "CPU", settings)
            except Exception as error:
                raise refused("OpenVINO", path, error) from error

        outputs = (*(o.name for o in original.graph.output), *expose)
        return OpenVinoSession(Path(path), model, compile_for, outputs, fixed_sizes=self.fixed_sizes)

    def _module(self) -> Any:
        if self.missing():
            raise MissingExtraError("OpenVINO", "openvino")
        # Its converter reports usage over the network unless told not to; the runtime alone has no such call.
        os.environ.setdefault("OPENVINO_TELEMETRY_ENABLED", "0")
        import openvino

        return openvino


def fixed_sizes() -> OpenVino:
    """OpenVINO with the sizes of its inputs known when it compiles."""
    return OpenVino(fixed_sizes=True)


@final
class OpenVinoSession:
    """A file in OpenVINO."""

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        compile_for: Callable[[Shapes | None], Any],
        outputs: tuple[str, ...],
        *,
        fixed_sizes: bool,
    ) -> None:
        self._path, self._model, self._outputs = path, model, outputs
        self._compile, self._fixed_sizes = compile_for, fixed_sizes
        self._compiled = compile_for(None)
        self._requests: dict[Shapes | None, Any] = {None: self._compiled.create_infer_request()}

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Session."""
        return self._outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Session."""
        check_inputs(self._model, inputs)
        request = self._request(tuple(x.shape for x in inputs) if self._fixed_sizes else None)
        try:
            request.infer([np.ascontiguousarray(x) for x in inputs], share_inputs=True)
            return [np.array(request.get_tensor(name).data) for name in self._outputs]
        except Exception as error:
            raise failed("OpenVINO", self._path, error) from error

    def _request(self, shapes: Shapes | None) -> Any:
        if shapes not in self._requests:
            while len(self._requests) > KEPT:
                del self._requests[next(iter(self._requests))]
            self._compiled = self._compile(shapes)
            self._requests[shapes] = self._compiled.create_infer_request()
        return self._requests[shapes]

    def kernels(self) -> tuple[Kernel, ...]:
        """The nodes of the runtime model, by layer and primitive, in their runtime precision."""
        counts = Counter((f"{kind} {primitive}".strip(), p) for kind, primitive, p, _ in self._layers())
        return tuple(Kernel(name=name, precision=p, count=n) for (name, p), n in sorted(counts.items()))

    def float_islands(self) -> tuple[str, ...]:
        """See Session. A fused kernel is named after the first op of the file that it holds."""
        found = [name for kind, _, p, name in self._layers() if kind in _COMPUTES and p in _FLOATS and name]
        return tuple(dict.fromkeys(found))

    def _layers(self) -> list[tuple[str, str, str, str]]:
        """Layer type, primitive, precision and the computing op of the file, if any, in the order of execution."""
        known = {name: n.name for n in self._model.graph.node if n.op_type in COMPUTES for name in (n.name, *n.output)}
        rows = []
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            info = {k: str(v.astype(str)) for k, v in op.get_rt_info().items()}
            kind = info.get("layerType", "")
            if kind in ("", "Const", "Input", "Output"):
                continue
            originals = info.get("originalLayersNames", "").split(",")
            name = next((known[n] for n in originals if n in known), "")
            rows.append((kind, info.get("primitiveType", ""), info.get("runtimePrecision", ""), name))
        return rows
