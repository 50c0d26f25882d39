"""MobileNetV2 with folded batch norm, the network that one scale per tensor ruins, on real engines.

    python tools/bench_mobilenet.py [--targets tensorrt onnxruntime-x86 ...] [--limit N]

Calibrated on every 10th of the ImageNet sample's 500 images, evaluated on the other 450: our file of each target in
the target's engine, beside ONNX Runtime's own `quantize_static` with one scale per channel and one per tensor, run by
ONNX Runtime. For a target that loses more than a tenth the layers that cause it are named. Exit code 1: a target of
`BARS` is below its bar.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

import isobit
from bench_output import Table, finish, say
from bench_targets import Subject, subject
from deployed import right_in_engine
from isobit.analysis.accuracy import accuracy
from isobit.analysis.layer_error import isolated, sensitivity
from isobit.export import export_float
from isobit.graph.capture import capture
from isobit.graph.passes import UnifyGlobalPool
from isobit.targets import TARGETS

BARS = {"tensorrt": 404, "onnxruntime-x86": 404}
"""Of 450 right in the engine: what ONNX Runtime's own quantizer reaches with one scale per channel."""
RIVALS = {"ort-minmax": "quantize_static, per channel", "ort-per-tensor": "quantize_static, per tensor"}


def responsible(model: fx.GraphModule, data: Iterable[tuple[Tensor, ...]], *, samples: int) -> list[tuple[str, float]]:
    """The five layers that cause most of the output's noise when each is quantized alone, with their shares."""
    shares = sensitivity(isolated(model, data, samples=samples))
    return sorted(shares.items(), key=lambda item: -item[1])[:5]


def rival_right(method: str, of: Subject, folder: Path) -> int:
    """Images right of the file that ONNX Runtime's quantizer makes from the same float network and images."""
    images = torch.cat([x for x, *_ in of.calibration])
    model, out = folder / "float.onnx", folder / f"{method}.onnx"
    if not model.is_file():
        captured = capture(of.net, images[:2])
        UnifyGlobalPool().apply(captured)
        export_float(captured, model, example=(images[:2],))
        np.save(folder / "images.npy", images.numpy())
    tool = Path(__file__).with_name("rivals.py")
    command = [sys.executable, tool, method, model, folder / "images.npy", out, "--limit", len(images)]
    subprocess.run([str(x) for x in command], check=True, capture_output=True)
    return right_in_engine(out, "onnxruntime", of.evaluation)


def measure(of: Subject, target: str, folder: Path, *, score: int, samples: int) -> dict[str, Any]:
    """One target: images right in simulation and in its first engine, and who is to blame where many are lost.

    `score` is what the float network gets right.
    """
    say(f"{of.name} for {target}")
    model = isobit.quantize(of.net, of.calibration.batched(10), target=target)
    path = Path(isobit.export(model, folder / f"{target}.onnx").path)
    engine = TARGETS[target].engines[0]
    in_engine = right_in_engine(path, engine, of.evaluation)
    simulated, total = accuracy(model, of.evaluation)
    layers = responsible(model, of.calibration, samples=samples) if in_engine < 0.9 * score and samples else []
    return {
        "target": target,
        "engine": engine,
        "right": in_engine,
        "simulation": simulated,
        "float": score,
        "total": total,
        "layers": layers,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mobilenet_v2_folded", help="a pretrained network, or digits")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--limit", type=int, help="evaluate on so many images only")
    parser.add_argument("--samples", type=int, default=16, help="images to find the responsible layers with; 0: none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    of = subject(options.network, options.limit)
    with tempfile.TemporaryDirectory() as folder:
        score, total = accuracy(of.net, of.evaluation)
        found = [measure(of, target, Path(folder), score=score, samples=options.samples) for target in options.targets]
        rivals = {title: rival_right(method, of, Path(folder)) for method, title in RIVALS.items()}
    rows = [("float", "", str(score), "", "")]
    for r in found:
        layers = ", ".join(f"{name} {share:.0%}" for name, share in r["layers"])
        rows.append((f"isobit, {r['target']}", r["engine"], str(r["right"]), str(r["simulation"]), layers))
    rows += [(title, "onnxruntime", str(n), "", "") for title, n in rivals.items()]
    columns = ("quantized by", "engine", f"right in the engine, of {total}", "in simulation", "noise of the output by")
    notes = (f"Calibrated on {of.calibration.samples} images, min-max ranges; evaluated on {total} others.",)
    table = Table(title=f"{of.name} at W8A8", columns=columns, rows=tuple(rows), notes=notes)
    missed = [
        f"{r['target']}: {r['right']} right in {r['engine']}, the bar is {BARS[r['target']]}"
        for r in found
        if options.network == "mobilenet_v2_folded" and not options.limit and r["right"] < BARS.get(r["target"], 0)
    ]
    return finish([table], json_file=options.json, records={"isobit": found, "rivals": rivals}, failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
