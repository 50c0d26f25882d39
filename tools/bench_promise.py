"""The promise of accuracy on real networks: what was asked, whether it was kept, the steps taken and the time spent.

    python tools/bench_promise.py [--cases …]

CIFAR ResNets are calibrated on 256 training images and judged by the lossless subset's 1,000; ImageNet networks are
calibrated on every 10th image of the sample and judged by the other 450. Each file found is verified on ONNX Runtime
on the same images.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import isobit
from bench_output import Table, finish, say
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
    "impossible": Case("cifar10_resnet20", 0.0, {"target": "onnxruntime-x86", "bits": 2}),
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
        with tempfile.TemporaryDirectory() as folder:
            path = isobit.export(model, Path(folder) / "net.onnx").path
            certificate = isobit.verify(path, model, test, engine="onnxruntime")
        found = {a.execution: a.right for a in certificate.accuracy}
        engine = next(n for execution, n in found.items() if execution.startswith("onnxruntime"))
        kept, total = "yes" if record.kept else "no", accuracy(model, test)[1]
        right = f"{found['simulation']} of {total}"
        ends.append(
            (name, kept, f"{record.drop:.2f}", f"{record.seconds:.0f}", right, f"{engine}", certificate.verdict)
        )
    tables = [
        Table(title="Steps", columns=COLUMNS, rows=tuple(steps)),
        Table(title="What was kept", columns=SUMMARY, rows=tuple(ends)),
    ]
    return finish(tables, json_file=options.json, records=ends)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
