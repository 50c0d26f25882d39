"""Sets up emulated machines in a folder, and checks there what the proofs say: `make isa`.

    python tools/isa.py FOLDER

The machines (`tools/machines.py`): x86 with AVX2 and no VNNI, Arm64 with dot products, Arm64 with matrix products. The
checks: a network built to saturate differs on AVX2 and nowhere else, and with `avoid_saturation` nowhere at all; ONNX
Runtime's integer ops equal the reference on Arm64, Add on all pairs of levels with many ties. Exit code 1 where one
does not hold.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import isobit
from isobit.core.records import Certificate
from isobit.engines import OnnxRuntime
from isobit.integer import run_reference
from isobit.verify import verify
from machines import MACHINES, Emulated, set_up

PAIRS = 256 * 256


def saturating_network() -> nn.Module:
    """Two convolutions, one of them depthwise, and a linear layer, all of equal weights."""
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4)
    )
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.constant_(layer.weight, 0.05)
            nn.init.constant_(layer.bias, 1.0)
    return net.eval()


def add_of_all_levels(seed: int) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The sum of every two levels; the ratios of scales are near sixteenths, so that many sums are ties."""
    rng = np.random.default_rng(seed)
    step = np.float32(rng.uniform(0.01, 0.08))
    sixteenths = [
        np.float32(k / 16 * (1 + e * 2.0**-23))
        for k, e in zip(rng.integers(1, 32, 2), rng.integers(-2, 3, 2), strict=True)
    ]
    scales = dict(zip("aby", (sixteenths[0] * step, sixteenths[1] * step, step), strict=True))
    constants = {f"s{k}": np.float32(v) for k, v in scales.items()}
    constants |= {f"z{k}": np.uint8(rng.integers(0, 256)) for k in scales}
    nodes = []
    for k in "ab":
        nodes.append(helper.make_node("QuantizeLinear", [k, f"s{k}", f"z{k}"], [f"q{k}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{k}", f"s{k}", f"z{k}"], [f"d{k}"]))
    nodes.append(helper.make_node("Add", ["da", "db"], ["sum"]))
    nodes.append(helper.make_node("QuantizeLinear", ["sum", "sy", "zy"], ["qy"]))
    nodes.append(helper.make_node("DequantizeLinear", ["qy", "sy", "zy"], ["y"]))
    values = [helper.make_tensor_value_info(k, TensorProto.FLOAT, [1, PAIRS]) for k in "aby"]
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "add", values[:2], values[2:], initializers)
    levels = np.meshgrid(np.arange(256), np.arange(256))
    inputs = [
        ((q.reshape(1, -1) - int(constants[f"z{k}"])) * scales[k]).astype(np.float32)
        for k, q in zip("ab", levels, strict=True)
    ]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), inputs


def line(name: str, certificate: Certificate) -> str:
    """What one file did on one machine."""
    found = certificate.comparisons[0]
    channels = sum(len(r.channels) for r in certificate.risks)
    return (
        f"{name:26} {certificate.instruction_set:26} {found.total - found.equal:6,} of {found.total:,} outputs differ, "
        f"by {found.largest:g} steps at most; {channels} channels can saturate here; {certificate.verdict}"
    )


def check_saturation(folder: Path, machines: Path) -> list[str]:
    """What does not hold of the network built to saturate."""
    data = [torch.rand(16, 8, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.7]
    failed = []
    for avoid in (False, True):
        name = "with avoid_saturation" if avoid else "built to saturate"
        model = isobit.quantize(saturating_network(), data, target="onnxruntime-x86", avoid_saturation=avoid)
        path = isobit.export(model, folder / f"{avoid}.onnx").path
        for engine in (OnnxRuntime(), *(Emulated(machine=m, folder=machines) for m in MACHINES)):
            certificate = verify(path, None, data, engine=engine)
            print(line(name, certificate), flush=True)
            saturates = engine.arithmetic.pair_bits is not None and not avoid
            if (certificate.verdict == "exact") is saturates or bool(certificate.risks) is not saturates:
                failed.append(f"{name} on {certificate.instruction_set}")
    return failed


def check_add(folder: Path, machines: Path) -> list[str]:
    """What does not hold of Add."""
    failed = []
    for machine in MACHINES:
        engine, differ = Emulated(machine=machine, folder=machines), 0
        for seed in range(4):
            model, inputs = add_of_all_levels(seed)
            onnx.save(model, folder / "add.onnx")
            reference = run_reference(folder / "add.onnx", inputs, engine.arithmetic).outputs[0]
            differ += int((engine.load(folder / "add.onnx").run(inputs)[0] != reference).sum())
        print(
            f"{'Add of all levels':26} {engine.instruction_set():26} {differ:6,} of {4 * PAIRS:,} outputs differ",
            flush=True,
        )
        failed += [f"Add on {engine.instruction_set()}"] if differ else []
    return failed


def main(arguments: list[str]) -> int:
    """Set up and check."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    machines = Path(arguments[0])
    set_up(machines)
    with tempfile.TemporaryDirectory() as name:
        failed = [*check_saturation(Path(name), machines), *check_add(Path(name), machines)]
    for what in failed:
        print(f"FAILED: {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
