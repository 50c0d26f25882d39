"""What an engine is: it loads a file, runs it, and says which kernels ran. Nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from isobit.core.arithmetic import Arithmetic
from isobit.core.errors import ArtifactError, EngineError, UnsupportedError
from isobit.core.onnx_file import first_line, graph_inputs, read_onnx
from isobit.core.records import Kernel

COMPUTES = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Gemm", "GlobalAveragePool",
        "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "PRelu",
        "ReduceMean", "Relu", "Resize", "Sigmoid", "Softmax", "Sub",
    }
)  # fmt: skip
"""ONNX ops that compute and have integer kernels somewhere: one of them in float is a float island."""


class Session(Protocol):
    """A loaded file."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors that `run` returns: the file's outputs, then the exposed ones."""

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run on `inputs`, in the order of the file's inputs. Raises EngineError for a wrong count, shape or dtype."""

    def kernels(self) -> tuple[Kernel, ...]:
        """Which kernels run, in which precision, how often."""

    def float_islands(self) -> tuple[str, ...]:
        """The names of the ops that compute (Conv, MatMul, Add, pooling, …) and run in float, in the order they run.

        Ops that the file itself keeps in float are among them: the caller compares.
        """


class Engine(Protocol):
    """Frozen settings of an engine. A new engine is one file and one line in `ENGINES`.

    It may have `advice`, a sentence on what to try where its answers are wrong.
    """

    @property
    def name(self) -> str:
        """Its key in `ENGINES`."""

    @property
    def format(self) -> str:
        """The files that it takes: the key of an exporter, `onnx` or `litert`."""

    def missing(self) -> str:
        """Empty when the engine can be used here; else why not, and the command that installs it."""

    def version(self) -> str:
        """The version of the installed package. Raises MissingExtraError."""

    def instruction_set(self) -> str:
        """The instructions that decide its integer arithmetic here, such as `AVX512-VNNI, AMX`."""

    @property
    def arithmetic(self) -> Arithmetic:
        """The rules by which it computes with integers: what the integer reference follows."""

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> Session:
        """Load the file `path`. `expose` names inner tensors to return after the outputs.

        Raises MissingExtraError, or EngineError for a truncated, foreign or refused file.
        """


def read_model(path: Path | str) -> onnx.ModelProto:
    """Read and check an ONNX file before an engine sees it. Raises EngineError that says what is wrong with it."""
    try:
        return read_onnx(path)
    except (ArtifactError, UnsupportedError) as error:
        raise EngineError(str(error)) from error


def expose_tensors(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` that returns the tensors `names` too. Raises EngineError for a name that it does not hold."""
    if not names:
        return model
    known = {name for node in model.graph.node for name in node.output}
    if unknown := [name for name in names if name not in known]:
        raise EngineError(f"there is no tensor {unknown[0]!r} to expose in the file")
    types = _tensor_types(model, names)
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    exposed.graph.output.extend(types[name] for name in names if name not in present)
    return exposed


def check_inputs(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> None:
    """Compare `inputs` with the file's inputs: count, dtype, rank and every fixed size. Raises EngineError."""
    wanted = graph_inputs(model)
    if len(inputs) != len(wanted):
        names = ", ".join(value.name for value in wanted)
        raise EngineError(f"the file takes {len(wanted)} inputs ({names}), got {len(inputs)}")
    symbols: dict[str, int] = {}
    for value, array in zip(wanted, inputs, strict=True):
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if array.dtype != dtype:
            raise EngineError(f"input {value.name!r} has to be {dtype}, got {array.dtype}")
        sizes = [d.dim_value or (d.dim_param or "?") for d in kind.shape.dim]
        fits = len(sizes) == array.ndim
        for size, have in zip(sizes, array.shape, strict=False):
            expected = symbols.setdefault(size, have) if isinstance(size, str) and size != "?" else size
            fits = fits and (expected in ("?", have))
        if not fits:
            shown = " × ".join(str(size) for size in sizes)
            raise EngineError(f"input {value.name!r} has to have the shape {shown}, got {array.shape}")


def refused(engine: str, path: Path | str, error: Exception) -> EngineError:
    """The error for a valid file that `engine` does not take."""
    return EngineError(f"{engine} refuses {path}: {first_line(error)}")


def failed(engine: str, path: Path | str, error: Exception) -> EngineError:
    """The error for a run that failed inside `engine`."""
    return EngineError(f"{engine} failed while it ran {path}: {first_line(error)}")


_RESULT = {"QGemm": 8, "QLinearConcat": 1, "QLinearConv": 7, "QuantizeLinear": 2}
"""Where the zero point of an op's integers stands among its inputs; the last of them in other quantized operators."""


def _tensor_types(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, onnx.ValueInfoProto]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    zero_points = {t.name: t.data_type for t in model.graph.initializer}
    for node in model.graph.node:
        place = _RESULT.get(node.op_type, len(node.input) - 1 if node.op_type.startswith("QLinear") else None)
        unsaid = node.op_type == "QuantizeLinear" and len(node.input) < 3
        if place is not None and node.output[0] not in types and (unsaid or len(node.input) > place):
            kind = onnx.TensorProto.UINT8 if unsaid else zero_points.get(node.input[place], onnx.TensorProto.UINT8)
            types[node.output[0]] = onnx.helper.make_tensor_value_info(node.output[0], kind, None)
    return {n: types.get(n, onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)) for n in names}
