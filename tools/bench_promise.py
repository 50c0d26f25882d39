"""The promise of accuracy on real networks: what was asked, whether it was kept, the steps taken and the time spent.

    python tools/bench_promise.py [--cases …]

CIFAR ResNets are calibrated on 256 training images and judged by the lossless subset's 1,000; ImageNet networks are
calibrated on every 10th image of the sample and judged by the other 450. Each file found is run on ONNX Runtime
on the same images, and verified on 50 of them.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import isobit
from bench_output import Table, finish, say
from deployed import deployed
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.cifar10 import read_cifar10
from isobit.benchmark.pretrained import pretrained


@dataclass(frozen=True)
class Case:
    """A network, how much top-1 may be lost in percent, and what is asked for."""

    network: str
    max_drop: float
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "8 bits, per tensor": Case("mobilenet_v2_folded", 1.0, {"target": "snpe"}),
    "3 bits": Case("cifar10_resnet20", 1.0, {"target": "onnxruntime-x86", "bits": 3}),
    "4-bit weights": Case("squeezenet1_1", 1.0, {"target": "onnxruntime-x86", "weight_bits": 4}),
    "2 bits, nothing lost": Case("cifar10_resnet20", 0.0, {"target": "onnxruntime-x86", "bits": 2}),
    "2 bits, nothing lost, two minutes": Case(
        "cifar10_resnet20", 0.0, {"target": "onnxruntime-x86", "bits": 2, "seconds": 120}
    ),
}
COLUMNS = ("case", "network", "may lose", "step", "top-1", "seconds", "best so far")
SUMMARY = ("case", "kept", "lost", "seconds", "simulation", "onnxruntime", "verdict")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    steps: list[tuple[str, ...]] = []
    ends: list[tuple[str, ...]] = []
    for name in options.cases:
        case = CASES[name]
        say(name)
        row = pretrained(case.network)
        net, images = row.load(), row.evaluation()
        cifar = case.network.startswith("cifar")
        calibration = read_cifar10("train", normalize=row.normalize).take(256) if cifar else images.every(10)
        test = list(images if cifar else images.without(calibration))
        data = [x for x, *_ in calibration]
        model = isobit.quantize_within(net, data, test, max_drop=case.max_drop, **case.settings)
        record = model.meta["promise"]
        steps.append((name, case.network, f"{case.max_drop}", "float", f"{record.float_metric:.2f}", "", ""))
        for step in record.steps:
            metric = "" if step.metric is None else f"{step.metric:.2f}"
            steps.append(("", "", "", step.name, metric, f"{step.seconds:.0f}", "yes" if step.better else ""))
        engine, kept = deployed(model, test), "yes" if record.kept else "no"
        right = "{} of {}".format(*accuracy(model, test))
        seconds = f"{record.seconds:.0f}"
        ends.append((name, kept, f"{record.drop:.2f}", seconds, right, f"{engine.right}", engine.verdict))
    tables = [
        Table(title="Steps", columns=COLUMNS, rows=tuple(steps)),
        Table(title="What was kept", columns=SUMMARY, rows=tuple(ends)),
    ]
    return finish(tables, json_file=options.json, records=ends)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
