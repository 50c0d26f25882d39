"""Ranges and reconstruction at few bits: CIFAR ResNets, calibrated on 1,024 images, 1,000 of the lossless subset.

    python tools/bench_reconstruction.py [--network cifar10_resnet20] [--seeds 3] [--widths 44 33 24]

For `openvino-cpu`: a scale per output channel, unsigned activations behind a ReLU, the sum of a residual in the
accumulator. As in the public code of BRECQ, the first and the last weight, the first layer's output and the last
block's have 8 bits. Each file of the first seed is run on ONNX Runtime. Exit code 1: the best method is below its bar.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import isobit
from bench_output import Table, finish, say
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.cifar10 import read_cifar10
from isobit.benchmark.pretrained import pretrained

METHODS: dict[str, dict[str, Any]] = {
    "min_max": {"weight_observer": "min_max", "activation_observer": "min_max", "reconstruction": "none"},
    "mse": {"weight_observer": "mse", "activation_observer": "mse", "reconstruction": "none"},
    "aciq": {"weight_observer": "aciq", "activation_observer": "aciq", "reconstruction": "none"},
    "auto": {"weight_observer": "auto", "activation_observer": "auto", "reconstruction": "none"},
    "joint": {"weight_observer": "mse", "activation_observer": "mse", "joint_ranges": True, "reconstruction": "none"},
    "gptq": {"reconstruction": "gptq"},
    "adaround": {"reconstruction": "adaround"},
    "brecq": {"reconstruction": "brecq"},
    "qdrop": {"reconstruction": "qdrop"},
}
LEARNED = ("adaround", "brecq", "qdrop")
LAST = {"cifar10_resnet20": "layer3.2.relu2", "cifar10_resnet56": "layer3.8.relu2"}
BARS = {("cifar10_resnet20", "44"): 912, ("cifar10_resnet20", "33"): 897, ("cifar10_resnet20", "24"): 903}
"""Images right of 1,000, the mean over the seeds of the best method."""
COLUMNS = ("bits", "method", "right, mean", "each seed", "onnxruntime", "seconds")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10_resnet20", choices=LAST)
    parser.add_argument("--widths", nargs="+", default=["44", "33", "24"], help="of weight and activation")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    row = pretrained(options.network)
    net, test = row.load(), list(row.evaluation())
    data = [x for x, *_ in read_cifar10("train", normalize=row.normalize).take(1024)]
    right, total = accuracy(net, test)
    rows, missed = [("float", "", f"{right}", "", "", "")], []
    for width in options.widths:
        best = 0.0
        weight, activation = int(width[0]), int(width[1])
        edges = {"relu": (weight, 8), LAST[options.network]: (weight, 8)}
        for name in options.methods:
            counts, seconds, engine = [], [], ""
            for seed in range(options.seeds if METHODS[name]["reconstruction"] in LEARNED else 1):
                say(f"W{weight}A{activation}, {name}, seed {seed}")
                start = time.perf_counter()
                model = isobit.quantize(
                    net, data, target="openvino-cpu", weight_bits=weight, activation_bits=activation, seed=seed,
                    layer_bits=edges, **METHODS[name],
                )  # fmt: skip
                seconds.append(time.perf_counter() - start)
                counts.append(accuracy(model, test)[0])
                engine = engine or _on_engine(model, test)
            mean = statistics.mean(counts)
            best = max(best, mean)
            each = " ".join(map(str, counts))
            took = f"{statistics.mean(seconds):.0f}"
            rows.append((f"W{weight}A{activation}", name, f"{mean:.1f}", each, engine, took))
        bar = BARS.get((options.network, width), 0)
        if best < bar:
            missed.append(f"W{weight}A{activation}: {best:.1f}, the bar is {bar}")
    table = Table(title=f"{options.network}, images right of {total}", columns=COLUMNS, rows=tuple(rows))
    return finish([table], json_file=options.json, records=rows, failed=missed)


def _on_engine(model: Any, test: list[Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = isobit.export(model, Path(folder) / "net.onnx").path
        certificate = isobit.verify(path, model, test, engine="onnxruntime")
    return f"{next(a.right for a in certificate.accuracy if a.execution.startswith('onnxruntime'))}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
