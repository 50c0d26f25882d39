"""Quantized without data: images right, against calibration on real ones.

    python tools/bench_no_data.py [--networks mobilenet_v2_folded] [--methods real none dead_leaves] [--brecq]

MobileNetV2 for `snpe` (one weight scale, equalized) at W8A8: evaluated on 450 images of the ImageNet sample, calibrated
on the other 50. ResNet-20 for `openvino-cpu` at W8A8: 1,000 test images, calibrated on 512 training images; with
`--brecq` at W4A4, too, reconstructed as in tools/bench_reconstruction.py. Made inputs are 64, seed 0; biases of
MobileNetV2 are corrected from data. Exit code 1: a bar is missed.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import isobit
from bench_output import Table, finish, say
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.pretrained import pretrained

EDGES = {"relu": (4, 8), "layer3.2.relu2": (4, 8)}
RUNS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "cifar10_resnet20": [("W8A8", {"target": "openvino-cpu"})],
    "mobilenet_v2_folded": [("W8A8", {"target": "snpe"})],
    "mobilenet_v2": [("W8A8", {"target": "snpe"})],
}
BRECQ = ("W4A4, brecq", {"target": "openvino-cpu", "bits": 4, "layer_bits": EDGES, "reconstruction": "brecq"})
METHODS = ("real", "none", "dead_leaves", "zeroq", "gdfq")
CORRECTED = frozenset({"mobilenet_v2_folded", "mobilenet_v2"})
"""Networks whose biases are corrected from real and made images, too."""

SHAPES = {"cifar10": (1, 3, 32, 32), "imagenet_sample": (1, 3, 224, 224)}
RANGES = {"tf": (-1.0, 1.0)}
ITERATIONS: dict[str, dict[str, int]] = {"zeroq": {"iterations": 200}, "gdfq": {"iterations": 200}}
BARS = {("mobilenet_v2_folded", "W8A8", "none"): 399, ("cifar10_resnet20", "W8A8", "none"): 910}
COLUMNS = ("network", "bits", "calibrated on", "right", "of", "seconds, data", "seconds, quantize")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v2_folded"], choices=RUNS)
    parser.add_argument("--methods", nargs="+", default=["real", "none", "dead_leaves"], choices=METHODS)
    parser.add_argument("--brecq", action="store_true", help="reconstruct ResNet-20 at W4A4, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows: list[tuple[str, ...]] = []
    missed = []
    for name in options.networks:
        row = pretrained(name)
        net, images = row.load(), row.evaluation()
        if row.data == "cifar10":
            real, test = [x for x, *_ in row.calibration()], list(images)
        else:
            calibration = images.every(10)
            real, test = [x for x, *_ in calibration], list(images.without(calibration))
        right, total = accuracy(net, test)
        rows.append((name, "float", "", f"{right}", f"{total}", "", ""))
        for method in options.methods:
            start, values = time.perf_counter(), RANGES.get(row.normalize)
            shape = SHAPES[row.data]
            data: list[Any] | None = real if method == "real" else None
            if method not in ("real", "none"):
                say(f"{name}: {method}")
                data = isobit.synthesize(net, shape, method=method, input_range=values, **ITERATIONS.get(method, {}))
            made = time.perf_counter() - start
            given = {"example": shape, "input_range": values} if data is None else {}
            correct = {"bias_correction": True} if name in CORRECTED and data is not None else {}
            for bits, settings in [*RUNS[name], *([BRECQ] if options.brecq and name == "cifar10_resnet20" else [])]:
                say(f"{name}: {method}, {bits}")
                start = time.perf_counter()
                model = isobit.quantize(net, data, **settings, **given, **correct)
                seconds = time.perf_counter() - start
                right, total = accuracy(model, test)
                rows.append((name, bits, method, f"{right}", f"{total}", f"{made:.0f}", f"{seconds:.0f}"))
                say(f"{rows[-1]}")
                bar = BARS.get((name, bits, method), 0)
                missed += [f"{name}, {bits}, {method}: {right}, the bar is {bar}"] if right < bar else []
    table = Table(title="Without data, images right", columns=COLUMNS, rows=tuple(rows))
    return finish([table], json_file=options.json, records=rows, failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
