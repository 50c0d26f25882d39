"""The referee on LiteRT files: which ops compute with integers, what stands against it, what to change."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np

from isobit.analysis.referee import Reason
from isobit.core.errors import ArtifactError
from isobit.core.litert_check import MOVES, kind_of
from isobit.core.litert_file import dtypes, read_litert, unique_names
from isobit.core.records import Finding

_WEIGHTED = frozenset({"BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})

_HYBRID = (
    "its weight alone is integers: LiteRT rounds the activations anew for each input, by a rule of each kernel",
    "quantize activations too: full integer quantization, with calibration data",
)
_CALIBRATE = "let the converter quantize it too: full integer quantization, or no op left out"


def judge_litert(path: Path) -> tuple[Finding, ...]:
    """All findings, those about ops in float first. Raises ArtifactError for a file that quantizes nothing."""
    file = _File(read_litert(path))
    if not any(file.scales(i) is not None for i in range(len(file.names))):
        raise ArtifactError(
            f"{path} was not written by isobit, and nothing in it is quantized: there are no integers to compare. "
            "Quantize the network first (isobit quantize), or give the quantized file"
        )
    reasons: dict[Reason, list[str]] = {}
    for rules in (file.in_float, file.of_any):
        for place, op in enumerate(file.graph.operators):
            for reason in rules(op, file.kinds[place]):
                reasons.setdefault(reason, []).append(file.names[op.outputs[0]])
    return tuple(
        Finding(problem=p, remedy=r, ops=tuple(ops), drops_rounding=(p, r) == _HYBRID)
        for (p, r), ops in reasons.items()
    )


def counted(path: Path) -> tuple[Counter[str], Counter[str]]:
    """How many ops of each kind compute with integers, and how many in float."""
    file = _File(read_litert(path))
    integer, floating = Counter[str](), Counter[str]()
    for kind, op in zip(file.kinds, file.graph.operators, strict=True):
        if kind not in MOVES:
            (floating if file.is_float(op.outputs[0]) else integer)[kind] += 1
    return integer, floating


@final
class _File:
    """A LiteRT file while it is judged."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.subgraphs[0]
        self.names, self.types = unique_names(self.graph), dtypes()
        self.kinds = [kind_of(model, op) for op in self.graph.operators]
        self.writers = {int(o): k for k, op in zip(self.kinds, self.graph.operators, strict=True) for o in op.outputs}

    def in_float(self, op: Any, kind: str) -> Iterator[Reason]:
        """Why an op runs in float, where it does."""
        if kind in MOVES or not self.is_float(op.outputs[0]):
            return
        if kind in _WEIGHTED and not self.is_float(op.inputs[1]):
            yield _HYBRID
        elif kind in _WEIGHTED and self.writers.get(int(op.inputs[1])) == "DEQUANTIZE":
            yield ("in float: its weight alone was made smaller, and is made float again", _CALIBRATE)
        elif any(self.writers.get(int(i)) == "DEQUANTIZE" for i in op.inputs):
            yield (f"in float: {kind} was left out, and what it reads is dequantized for it", _CALIBRATE)
        else:
            yield (f"in float: {kind} has float inputs in the file", _CALIBRATE)

    def of_any(self, op: Any, kind: str) -> Iterator[Reason]:
        """What is to know of an op that computes with integers."""
        x, y = int(op.inputs[0]), int(op.outputs[0])
        if self.dtype(x) == self.dtype(y) == np.int16 and kind not in MOVES and self.scales(y) is not None:
            yield (
                "its activations have 16 bits: XNNPACK has no kernels for them, and LiteRT's plain ones are slow",
                "8 bits, where the accuracy allows it",
            )
        if self.dtype(y) == np.uint8 and kind not in MOVES:
            yield (
                "unsigned bytes: the old format of TensorFlow Lite",
                "convert the network again, with signed bytes: int8 kernels are the ones that are tuned",
            )
        if self._rescales(x, y) and kind == "QUANTIZE":
            yield (
                "rounds integers of one scale to another: XNNPACK's factor for that has 8 bits, the reference's 31",
                "one scale for both tensors",
            )
        if kind == "LEAKY_RELU" and self.dtype(y) == np.int8:
            yield (
                "LEAKY_RELU on bytes: XNNPACK's factors have 8 bits, the reference's 31",
                "RELU, where the network can be trained with it",
            )
        if (
            kind in _WEIGHTED
            and len(op.inputs) > 1
            and not self.is_float(op.inputs[1])
            and self.data(op.inputs[1]) is not None
        ):
            yield from self._weights(op, kind)

    def _weights(self, op: Any, kind: str) -> Iterator[Reason]:
        weight, found = self.data(op.inputs[1]), self.scales(op.inputs[1])
        if weight is None or found is None:
            return
        scale, zero_point = found
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and scale.size == 1 and self.channels(op, kind) > 1:
            yield (
                f"one scale for all channels of a {kind} weight",
                "one for each output channel: it costs nothing at run time",
            )
        if zero_point.any() and weight.dtype == np.int8:
            yield ("weights have zero points, and LiteRT's kernels take them for zero", "symmetric weights")
        if weight.dtype == np.int8 and (weight == -128).any():
            yield (
                "a weight is -128, which LiteRT's specification leaves out: kernels that add pairs of products in 16 "
                "bits, as on older Arm, can saturate",
                "weights of -127 to 127",
            )
        if len(op.inputs) > 2 and op.inputs[2] >= 0 and not self.is_float(op.inputs[0]):
            yield from self._bias(op, scale)

    def _bias(self, op: Any, weight_scale: np.ndarray) -> Iterator[Reason]:
        bias, x = self.scales(op.inputs[2]), self.scales(op.inputs[0])
        if bias is None or x is None:
            return
        expected = np.float64(x[0][0]) * weight_scale.astype(np.float64)
        if not np.allclose(np.broadcast_to(bias[0], expected.shape), expected, rtol=1e-4, atol=0):
            yield ("the scale of the bias is not s_x · s_w", "requantize it at the product of both scales")
        data = self.data(op.inputs[2])
        if data is not None and data.dtype == np.int32 and (np.abs(data.astype(np.int64)) >= (1 << 31) - 1).any():
            yield ("a bias is at the end of 32 bits: it was cut off there", "a larger scale for that channel's weights")

    def _rescales(self, x: int, y: int) -> bool:
        one, other = self.scales(x), self.scales(y)
        if one is None or other is None or self.dtype(x) not in (np.int8, np.uint8):
            return False
        apart = 128 * (int(self.dtype(y) == np.uint8) - int(self.dtype(x) == np.uint8))
        return not (np.array_equal(one[0], other[0]) and np.array_equal(one[1] + apart, other[1]))

    def channels(self, op: Any, kind: str) -> int:
        """How many outputs a weight has."""
        return int(self.graph.tensors[op.inputs[1]].shape[3 if kind == "DEPTHWISE_CONV_2D" else 0])

    def dtype(self, index: int) -> Any:
        """The type of a tensor, None where isobit has none for it."""
        return self.types.get(self.graph.tensors[index].type) if index >= 0 else None

    def is_float(self, index: int) -> bool:
        """Whether a tensor holds floats."""
        kind = self.dtype(int(index))
        return kind is not None and kind.kind == "f"

    def scales(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The scales and zero points of a tensor."""
        found = self.graph.tensors[index].quantization
        if found is None or found.scale is None or len(found.scale) == 0:
            return None
        zeros = np.zeros(len(found.scale), np.int64) if found.zeroPoint is None else np.asarray(found.zeroPoint)
        return np.asarray(found.scale, np.float32), zeros

    def data(self, index: int) -> np.ndarray | None:
        """The values of a constant, in a row."""
        tensor = self.graph.tensors[index]
        buffer = self.model.buffers[tensor.buffer].data
        kind = self.dtype(int(index))
        if buffer is None or len(buffer) == 0 or kind is None:
            return None
        return np.frombuffer(np.asarray(buffer, np.uint8).tobytes(), kind)
