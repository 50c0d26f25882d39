"""PT2E programs as QDQ graphs: what the integer reference evaluates, and what everything that reads ONNX understands.

The result of quantize_per_tensor becomes that of a QuantizeLinear of its name, with a Clip in front of it where the op
keeps fewer levels than its type has. A float bias that is whole multiples of s_x · s_w, to the bit, becomes int32.
"""

from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.onnx_file import first_line
from isobit.core.pt2_file import Call, Pt2, Ref, read_pt2
from isobit.integer.pt2e_ops import READERS
from isobit.integer.values import Constant

OPSET = 21


def qdq_of_pt2(source: Path | str | Pt2) -> onnx.ModelProto:
    """The graph of a PT2 archive with QuantizeLinear and DequantizeLinear.

    Raises ArtifactError for a file that is damaged, UnsupportedError, with its name, for an op that has no rule.
    """
    program = source if isinstance(source, Pt2) else read_pt2(source)
    reading = Reading(program)
    for call in program.calls:
        if call.target not in READERS:
            raise UnsupportedError(f"{call.results[0]}: isobit does not know the op {call.target}")
        try:
            READERS[call.target](reading, call)
        except (ArtifactError, UnsupportedError):
            raise
        except Exception as error:  # what the file says of the op, of any kind
            raise ArtifactError(
                f"{call.results[0]} ({call.target}) cannot be read as the file describes it: {first_line(error)}"
            ) from error
    return reading.model()


@final
class Reading:
    """A program while it is read: nodes and initializers so far."""

    def __init__(self, program: Pt2) -> None:
        self.program = program
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Constant] = {}
        self.scales: dict[str, np.ndarray] = {}
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._integers: dict[str, type] = {}
        self._same: dict[str, str] = {}
        self._views: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        inputs = [
            helper.make_tensor_value_info(i.name, _onnx(i.dtype), [s or "batch" for s in i.sizes])
            for i in self.program.inputs
        ]
        outputs = []
        for name in self.program.outputs:
            if self.name(name) != name:
                self.add("Identity", [self.name(name)], name)
            sizes = [s or "batch" for s in self.shape(name)]
            outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes))
        graph = helper.make_graph(self.nodes, "main", inputs, outputs, list(self._initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        if self.program.metadata:
            helper.set_model_props(model, self.program.metadata)
        return model

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node; its name is that of its result."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def initializer(self, name: str, data: np.ndarray) -> str:
        """A constant of the graph, once for each name."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(data, order="C"), name)
        return name

    def name(self, name: str) -> str:
        """The tensor that stands for a result; constants become initializers."""
        name = self._same.get(name, name)
        if name in self.weights and name not in self._views:
            self._views[name] = self.dequantized(name, name, self.weights[name])
        if name in self.program.constants:
            return self.initializer(name, self.constant(Ref(name)))
        return name

    def operand(self, value: Any) -> str:
        """The tensor that an op reads; a number becomes an initializer."""
        if isinstance(value, Ref):
            return self.name(value.name)
        if isinstance(value, (int, float)):
            return self.initializer(f"number_{value!r}", np.asarray(value, np.float32))
        raise UnsupportedError(f"an operand is {value!r}, not a tensor or a number")

    def alias(self, name: str, of: Ref) -> None:
        """Let a result be another tensor."""
        self._same[name] = self._same.get(of.name, of.name)
        if of.name in self.scales:
            self.scales[name] = self.scales[of.name]

    def integer_type(self, value: Any) -> type | None:
        """The type of a tensor that holds the integers of a quantizer; None for another one."""
        return self._integers.get(self._same.get(value.name, value.name)) if isinstance(value, Ref) else None

    def integer(self, name: str, kind: type) -> None:
        """Note that a tensor holds the integers of a quantizer."""
        self._integers[name] = kind

    def constant(self, value: Any) -> np.ndarray:
        """A parameter or buffer. Raises UnsupportedError for what is computed."""
        if not isinstance(value, Ref) or value.name not in self.program.constants:
            raise UnsupportedError(f"{value} has to be a constant")
        return _numpy(self.program.constants[value.name])

    def shape(self, value: Any) -> tuple[int | None, ...]:
        """The sizes of a tensor. Raises ArtifactError where the file does not say them."""
        name = value.name if isinstance(value, Ref) else str(value)
        if name not in self.program.shapes:
            raise ArtifactError(f"the file does not say which sizes {name} has")
        return self.program.shapes[name]

    def dequantized(self, result: str, name: str, weight: Constant) -> str:
        """A weight behind DequantizeLinear."""
        parts = {"integers": weight.q, "scale": weight.scale, "zero_point": weight.zero_point}
        inputs = [self.initializer(f"{name}/{word}", data) for word, data in parts.items()]
        return self.add("DequantizeLinear", inputs, result, axis=weight.axis)

    def view(self, call: Call, scale: np.ndarray, zero_point: np.ndarray) -> None:
        """An activation behind DequantizeLinear; one for all readers, and one for each output of the program."""
        (result,), source = call.results, self._same.get(call.arguments["input"].name, call.arguments["input"].name)
        self.scales[result] = scale
        parts = {"scale": scale, "zero_point": zero_point}
        inputs = [source, *(self.initializer(f"{result}/{word}", data) for word, data in parts.items())]
        key = f"{source}/{scale.item()!r}/{zero_point.item()}"
        if key in self._views and result not in self.program.outputs:
            self._same[result] = self._views[key]
            return
        self._views.setdefault(key, self.add("DequantizeLinear", inputs, result))

    def bias(self, x: Any, weight: Constant | None, bias: Any) -> str:
        """A bias as int32 at s_x · s_w where it is on that grid, else in float; empty where there is none."""
        if bias is None:
            return ""
        if not isinstance(bias, Ref) or bias.name not in self.program.constants or bias.name in self.weights:
            return self.operand(bias)
        b, name = self.constant(bias), f"{bias.name}/bias"
        scale = self.scales.get(x.name) if isinstance(x, Ref) else None
        if scale is None or weight is None or b.dtype != np.float32:
            return self.operand(bias)
        step = np.broadcast_to((scale * weight.scale.reshape(-1)).astype(np.float32), b.shape)
        q = np.rint(b.astype(np.float64) / step)
        if np.abs(q).max(initial=0) >= 1 << 31 or not (q.astype(np.float32) * step == b).all():
            return self.operand(bias)
        zeros = np.zeros(b.shape, np.int32)
        if name not in self._views:
            self._views[name] = self.dequantized(name, name, Constant(q.astype(np.int32), step, zeros, 0))
        return name

    def weight(self, value: Any) -> Constant | None:
        """A weight of integers; None for another tensor."""
        return self.weights.get(value.name) if isinstance(value, Ref) else None


def _onnx(dtype: torch.dtype) -> int:
    return int(helper.np_dtype_to_tensor_dtype(_numpy(torch.zeros(0, dtype=dtype)).dtype))


def _numpy(x: Tensor) -> np.ndarray:
    return np.asarray(x.detach().numpy())
