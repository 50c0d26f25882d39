"""Ranges and reconstruction at few bits: images right, on ONNX Runtime too, seconds and peak memory.

    python tools/bench_reconstruction.py [--network cifar10_resnet20] [--seeds 3] [--widths 44 33 24]

CIFAR ResNets for `openvino-cpu` (a scale per output channel, unsigned activations behind a ReLU, the sum of a residual
in the accumulator), calibrated on 1,024 training images, 1,000 of the lossless subset; as in the public code of BRECQ
the first and the last weight, the first layer's output and the last block's have 8 bits. The others for
`onnxruntime-x86` with first and last layer at 8 bits: ImageNet networks calibrated on every 10th image of the sample
and evaluated on the other 450, a small ViT trained on the digits. Each file of the first seed is run on ONNX Runtime,
and verified there on 50 images.
Exit code 1: the best method is below its bar.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import isobit
from bench_output import Table, finish, say
from bench_smooth import train
from deployed import deployed
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.cifar10 import read_cifar10
from isobit.benchmark.data.digits import read_digits
from isobit.benchmark.pretrained import pretrained
from rivals import memory

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
NETWORKS = (*LAST, "mobilenet_v2_folded", "squeezenet1_1", "vit_digits")
BARS = {
    ("cifar10_resnet20", "44"): 912,
    ("cifar10_resnet20", "33"): 897,
    ("cifar10_resnet20", "24"): 903,
    ("mobilenet_v2_folded", "48"): 397,
}
"""Images right, the mean over the seeds of the best method."""
COLUMNS = ("bits", "method", "right, mean", "each seed", "onnxruntime", "seconds", "peak, MiB more")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A network with its data; `edges` are the widths of single layers for a width of weights."""

    net: nn.Module
    data: list[Tensor]
    test: list[Any]
    target: str
    last: str | None = None

    def edges(self, weight: int) -> dict[str, Any]:
        """`layer_bits`."""
        return {} if self.last is None else {"relu": (weight, 8), self.last: (weight, 8)}


def setup(name: str) -> Setup:
    """The network of that name, calibrated and evaluated as above."""
    if name == "vit_digits":
        digits = [x for x, _ in read_digits("train").batched(64)][:4]
        return Setup(net=train(), data=digits, test=list(read_digits("test").batched(150)), target="onnxruntime-x86")
    row = pretrained(name)
    net, images = row.load(), row.evaluation()
    if name in LAST:
        data = [x for x, *_ in read_cifar10("train", normalize=row.normalize).take(1024)]
        return Setup(net=net, data=data, test=list(images), target="openvino-cpu", last=LAST[name])
    calibration = images.every(10)
    data = [x for x, *_ in calibration]
    return Setup(net=net, data=data, test=list(images.without(calibration)), target="onnxruntime-x86")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10_resnet20", choices=NETWORKS)
    parser.add_argument("--widths", nargs="+", default=["44", "33", "24"], help="of weight and activation")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    setting = setup(options.network)
    right, total = accuracy(setting.net, setting.test)
    rows, missed = [("float", "", f"{right}", "", "", "", "")], []
    for width in options.widths:
        best = 0.0
        weight, activation = int(width[0]), int(width[1])
        for name in options.methods:
            counts, seconds, peaks, engine = [], [], [], ""
            for seed in range(options.seeds if METHODS[name]["reconstruction"] in LEARNED else 1):
                say(f"W{weight}A{activation}, {name}, seed {seed}")
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
                start, before = time.perf_counter(), memory("VmRSS")
                model = isobit.quantize(
                    setting.net, setting.data, target=setting.target, weight_bits=weight, activation_bits=activation,
                    seed=seed, layer_bits=setting.edges(weight), **METHODS[name],
                )  # fmt: skip
                seconds.append(time.perf_counter() - start)
                peaks.append(memory("VmHWM") - before)
                counts.append(accuracy(model, setting.test)[0])
                engine = engine or "{} {}".format(*deployed(model, setting.test))
            mean = statistics.mean(counts)
            best = max(best, mean)
            each = " ".join(map(str, counts))
            took, peak = f"{statistics.mean(seconds):.0f}", f"{max(peaks):.0f}"
            rows.append((f"W{weight}A{activation}", name, f"{mean:.1f}", each, engine, took, peak))
        bar = BARS.get((options.network, width), 0)
        if best < bar:
            missed.append(f"W{weight}A{activation}: {best:.1f}, the bar is {bar}")
    table = Table(title=f"{options.network}, images right of {total}", columns=COLUMNS, rows=tuple(rows))
    return finish([table], json_file=options.json, records=rows, failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
