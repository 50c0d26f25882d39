"""Which two products of a channel share a 16-bit sum: one weight pair in each output channel, all activations at 255.

    python tools/probe_pairs.py FOLDER
    ONEDNN_MAX_CPU_ISA=AVX2 python tools/probe_pairs.py

With FOLDER (of `tools/isa.py`) ONNX Runtime is asked, on an emulated processor with AVX2; without it OpenVINO, as
ONEDNN_MAX_CPU_ISA lets it compute. Products are numbered with the input channel as the fastest index, then the column,
then the row of the kernel. Each line: the layer, activations, weights, how many pairs saturate, and which.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from isobit.engines import Engine, OpenVino
from machines import Emulated, set_up

LARGE, LEVEL = 127, 100
"""The weights of a pair, and the level of a sum that did not saturate."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of so many input channels for each output; a depthwise one has `multiplier` outputs for each channel."""

    channels: int = 0
    kernel: tuple[int, ...] = ()
    groups: int = 1
    multiplier: int = 0
    aligned: int = 1
    dynamic: bool = False


CASES = {
    "conv 3x3, 8 channels": Layer(channels=8, kernel=(3, 3)),
    "conv 3x3, 8 channels, 64 n outputs": Layer(channels=8, kernel=(3, 3), aligned=64),
    "conv 3x3, 3 channels": Layer(channels=3, kernel=(3, 3)),
    "conv 3x3, 16 channels, 64 n outputs": Layer(channels=16, kernel=(3, 3), aligned=64),
    "conv 1x1, 24 channels": Layer(channels=24, kernel=(1, 1)),
    "conv 1x1, 25 channels, 64 n outputs": Layer(channels=25, kernel=(1, 1), aligned=64),
    "conv 3x3, 2 groups of 8": Layer(channels=16, kernel=(3, 3), groups=2),
    "depthwise 3x3": Layer(kernel=(3, 3), multiplier=1),
    "depthwise 3x3, 64 channels": Layer(kernel=(3, 3), multiplier=1, aligned=64),
    "depthwise 5x5": Layer(kernel=(5, 5), multiplier=1),
    "depthwise 1-d": Layer(kernel=(5,), multiplier=1),
    "3x3, 2 outputs for each channel": Layer(kernel=(3, 3), multiplier=2),
    "conv 1-d, 8 channels": Layer(channels=8, kernel=(3,)),
    "gemm, 24 inputs": Layer(channels=24),
    "gemm, 25 inputs, 64 n outputs": Layer(channels=25, aligned=64),
    "dynamic product, 24 inputs": Layer(channels=24, dynamic=True),
}


def pairs_of(layer: Layer) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The weight, with one pair in each output channel, and the pairs."""
    inner = 1 if layer.multiplier else layer.channels // layer.groups
    products = inner * int(np.prod(layer.kernel, dtype=int))
    pairs = list(combinations(range(products), 2))
    step = int(np.lcm.reduce([layer.aligned, layer.groups, max(layer.multiplier, 1)]))
    pairs += (pairs * step)[: -len(pairs) % step]
    rows = np.zeros((len(pairs), products), np.int8)
    for row, pair in zip(rows, pairs, strict=True):
        row[list(pair)] = LARGE
    return np.moveaxis(rows.reshape(len(pairs), *layer.kernel, inner), -1, 1), pairs


def network(layer: Layer, w: np.ndarray, *, signed: bool, zero_point: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """The layer between quantizers of scale 1, and the input at which every product is largest."""
    outputs, level, kind = len(w), 127 if signed else 255, np.int8 if signed else np.uint8
    groups = outputs // layer.multiplier if layer.multiplier else layer.groups
    sizes = [2, groups if layer.multiplier else layer.channels, *(7 for _ in layer.kernel)]
    unsigned = zero_point >= 100
    w = (w + zero_point).astype(np.uint8) if unsigned else w + np.int8(zero_point)
    constants = {
        "s": np.float32(1), "z": kind(0), "w": w, "ws": np.ones(outputs, np.float32),
        "ys": np.float32(2 * LARGE * level / LEVEL), "wz": np.full(outputs, zero_point, w.dtype),
    }  # fmt: skip
    node, inside = helper.make_node, [helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0)]
    inside += [node("QuantizeLinear", ["x", "s", "z"], ["xq"]), node("DequantizeLinear", ["xq", "s", "z"], ["xd"])]
    if layer.kernel:
        inside.append(node("Conv", ["xd", "wd"], ["c"], group=groups, kernel_shape=list(layer.kernel)))
    else:
        inside.append(node("Gemm", ["xd", "wd"], ["c"], transB=1))
    inside += [node("QuantizeLinear", ["c", "ys", "z"], ["yq"]), node("DequantizeLinear", ["yq", "ys", "z"], ["y"])]
    if layer.dynamic:
        constants = {"w": np.ascontiguousarray(w.T), "ys": constants["ys"]}
        inside = [
            node("DynamicQuantizeLinear", ["x"], ["xq", "s", "z"]), node("MatMulInteger", ["xq", "w", "z"], ["i"]),
            node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), node("Mul", ["f", "s"], ["y"]),
        ]  # fmt: skip
    graph = helper.make_graph(
        inside, "pairs", [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True), np.full(sizes, level, np.float32)


def probe(engine: Engine, folder: Path) -> None:
    """Print a line for each layer."""
    print(f"{engine.version()}, {engine.instruction_set()}")
    for name, layer in CASES.items():
        w, pairs = pairs_of(layer)
        for signed, zero_point in ((False, 0), (True, 0), (False, -20), (False, 120)):
            if layer.dynamic and (signed or zero_point):
                continue
            model, x = network(layer, w, signed=signed, zero_point=zero_point)
            onnx.save(model, folder / "pairs.onnx")
            session = engine.load(folder / "pairs.onnx")
            levels = session.run([x])[0].reshape(2, len(pairs), -1) / (2 * LARGE * x.flat[0] / LEVEL)
            wrong = sorted({p for p, v in zip(pairs, abs(levels - LEVEL).max((0, 2)), strict=True) if v > 0.6})
            kinds = f"{'s8' if signed else 'u8'} · {'u8' if zero_point >= 100 else 's8'}, zero point {zero_point}"
            shown = " ".join(f"{a}+{b}" for a, b in wrong[:8])
            kernels = " ".join(
                k.name for k in session.kernels() if any(t in k.name for t in ("Conv", "emm", "MatMul", "Full"))
            )
            print(f"{name:36} {kinds:26} {len(wrong)} of {len(set(pairs))} pairs  {shown:32}  {kernels}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Ask the engine of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        if not arguments:
            probe(OpenVino(), Path(folder))
            return
        set_up(Path(arguments[0]))
        probe(Emulated(machine="avx2", folder=Path(arguments[0])), Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
