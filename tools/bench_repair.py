"""MobileNetV2 with one scale per tensor, repaired without training: equalization, bias correction, AdaRound.

    python tools/bench_repair.py [--targets snpe tvm onnxruntime-x86] [--variants default …]

Batch norm folded, calibrated on every 10th of the ImageNet sample's 500 images, evaluated on the other 450, in
simulation and on ONNX Runtime; the verdict is over 50 of them. Seconds are those of the whole `isobit.quantize`. Exit
code 1: a bar is missed.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import isobit
from bench_output import Table, finish, say
from deployed import deployed
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.pretrained import pretrained

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"equalize": False, "reconstruction": "none"},
    "equalized": {"equalize": True, "reconstruction": "none"},
    "biases corrected": {"equalize": False, "bias_correction": True, "reconstruction": "none"},
    "both": {"equalize": True, "bias_correction": True, "reconstruction": "none"},
    "GPTQ": {"equalize": False, "reconstruction": "gptq"},
    "default": {},
    "both, AdaRound": {"equalize": True, "bias_correction": True, "reconstruction": "adaround"},
}
SLOW = "both, AdaRound"  # minutes for each target: only where it is asked for
BARS = {("snpe", "default"): 402, ("onnxruntime-x86", "default"): 413}
"""Images right of 450 in simulation."""
COLUMNS = ("target", "repair", "simulation", "onnxruntime", "verdict", "seconds")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["snpe", "tvm", "onnxruntime-x86"])
    parser.add_argument("--variants", nargs="+", default=[v for v in VARIANTS if v != SLOW], choices=VARIANTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    row = pretrained("mobilenet_v2_folded")
    net, images = row.load(), row.evaluation()
    calibration = images.every(10)
    test, data = list(images.without(calibration)), [x for x, *_ in calibration]
    right, total = accuracy(net, test)
    rows, missed = [("float", "", f"{right}", "", "", "")], []
    for target in options.targets:
        for name in options.variants:
            say(f"{target}: {name}")
            start = time.perf_counter()
            model = isobit.quantize(net, data, target=target, **VARIANTS[name])
            seconds = time.perf_counter() - start
            simulated, engine = accuracy(model, test)[0], deployed(model, test)
            rows.append((target, name, f"{simulated}", f"{engine.right}", engine.verdict, f"{seconds:.1f}"))
            bar = BARS.get((target, name), 0)
            missed += [f"{target}, {name}: {simulated}, the bar is {bar}"] if simulated < bar else []
    table = Table(title=f"MobileNetV2, images right of {total}", columns=COLUMNS, rows=tuple(rows))
    return finish([table], json_file=options.json, records=rows, failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
