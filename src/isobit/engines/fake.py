"""An engine without kernels of its own: the ONNX reference evaluator runs the file in float32, one op at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from isobit.core.arithmetic import FLOAT32, Arithmetic
from isobit.core.records import Kernel
from isobit.engines.base import COMPUTES, check_inputs, expose_tensors, failed, read_model, refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Fake:
    """Always there and deterministic: for tests, and where no engine is installed.

    It fuses nothing, so it is a float simulation of the file: quantize and dequantize around float32 ops.
    """

    @property
    def name(self) -> str:
        """See Engine."""
        return "fake"

    @property
    def format(self) -> str:
        """See Engine."""
        return "onnx"

    def missing(self) -> str:
        """It needs nothing but onnx, which isobit depends on."""
        return ""

    def version(self) -> str:
        """The version of onnx."""
        return f"onnx {onnx.__version__}"

    def instruction_set(self) -> str:
        """Numpy's float32: no integer instruction is used."""
        return "float32"

    @property
    def arithmetic(self) -> Arithmetic:
        """What ONNX Runtime does: this engine rounds in float32 and may differ by a step."""
        return FLOAT32

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> "FakeSession":
        """See Engine."""
        model = expose_tensors(read_model(path), expose)
        try:
            evaluator = ReferenceEvaluator(model)
        except Exception as error:
            raise refused("the ONNX reference evaluator", path, error) from error
        names = {output.name for output in read_model(path).graph.output}
        outputs = [o.name for o in model.graph.output if o.name in names]
        return FakeSession(Path(path), model, evaluator, (*outputs, *expose))


@final
class FakeSession:
    """A file in the ONNX reference evaluator."""

    def __init__(
        self, path: Path, model: onnx.ModelProto, evaluator: ReferenceEvaluator, outputs: tuple[str, ...]
    ) -> None:
        self._path, self._model, self._evaluator, self._outputs = path, model, evaluator, outputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Session."""
        return self._outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Session."""
        check_inputs(self._model, inputs)
        feeds = dict(zip(self._evaluator.input_names, inputs, strict=True))
        try:
            with np.errstate(all="ignore"):  # NaN and Inf are the caller's data, and are returned as such
                return [np.asarray(y) for y in self._evaluator.run(list(self._outputs), feeds)]
        except Exception as error:
            raise failed("the ONNX reference evaluator", self._path, error) from error

    def kernels(self) -> tuple[Kernel, ...]:
        """Every op of the file, in float32."""
        counts = Counter(node.op_type for node in self._model.graph.node if node.op_type != "Constant")
        return tuple(Kernel(name=f"numpy {op}", precision="float32", count=n) for op, n in sorted(counts.items()))

    def float_islands(self) -> tuple[str, ...]:
        """Every op that computes: nothing here runs in integers."""
        return tuple(n.name or n.output[0] for n in self._model.graph.node if n.op_type in COMPUTES)
