"""Repairs that move weights and biases between channels: equalization, absorption of high biases, splitting; and GPTQ.

    python tools/bench_channels.py [--networks cifar10_resnet20 mobilenet_v2] [--targets snpe tvm] [--weight-bits 8]
        [--repairs none "split 2 %" GPTQ]

MobileNetV2 here has its batch norm (measured on images of the sample), whose statistics absorption needs. Calibrated on
256 training images, or on every 10th of the ImageNet sample's 500, and evaluated on the test images, or on the other
450, in simulation.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import isobit
from bench_output import Table, finish, say
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.cifar10 import read_cifar10
from isobit.benchmark.pretrained import pretrained

REPAIRS: dict[str, dict[str, Any]] = {
    "none": {"equalize": False},
    "split 2 %": {"equalize": False, "split_channels": 0.02},
    "split 5 %": {"equalize": False, "split_channels": 0.05},
    "absorbed": {"equalize": False, "absorb_bias": True},
    "equalized": {"equalize": True},
    "equalized, absorbed": {"equalize": True, "absorb_bias": True},
    "equalized, split 2 %": {"equalize": True, "split_channels": 0.02},
    "GPTQ": {"reconstruction": "gptq"},
    "GPTQ, biases corrected": {"reconstruction": "gptq", "bias_correction": True},
}
COLUMNS = ("network", "target", "repair", "right in simulation", "changed", "seconds")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["cifar10_resnet20", "mobilenet_v2"])
    parser.add_argument("--targets", nargs="+", default=["snpe"])
    parser.add_argument("--repairs", nargs="+", default=list(REPAIRS)[:7], choices=REPAIRS)
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    for network in options.networks:
        row = pretrained(network)
        net, images = row.load(), row.evaluation()
        if row.data == "cifar10":
            calibration, test = read_cifar10("train", normalize=row.normalize).take(256), list(images)
        else:
            calibration = images.every(10)
            test = list(images.without(calibration))
        data = [x for x, *_ in calibration]
        right, total = accuracy(net, test)
        rows.append((network, "float", "", f"{right} of {total}", "", ""))
        for target in options.targets:
            for name in options.repairs:
                say(f"{network}, {target}: {name}")
                start = time.perf_counter()
                model = isobit.quantize(net, data, target=target, weight_bits=options.weight_bits, **REPAIRS[name])
                seconds = time.perf_counter() - start
                reports = {k: r for k, r in model.meta["passes"].items() if k in REPAIRS_BY_PASS}
                changed = ", ".join(f"{k} {len(r.changed)}" for k, r in reports.items())
                rows.append((network, target, name, f"{accuracy(model, test)[0]}", changed, f"{seconds:.1f}"))
    table = Table(title=f"Repairs, W{options.weight_bits}A8", columns=COLUMNS, rows=tuple(rows))
    return finish([table], json_file=options.json, records=rows, failed=[])


REPAIRS_BY_PASS = ("equalize", "absorb_bias", "split_channels")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
