"""What GPTQ gains at 8 bits, where rounding costs little: noise of the logits and images right, W8A8.

    python tools/bench_refit.py [--networks cifar10_resnet20 …] [--target onnxruntime-x86]

CIFAR networks are calibrated on 256 training images and evaluated on the lossless subset, the others are calibrated on
every 10th image of the ImageNet sample and evaluated on the other 450.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import isobit
from bench_output import Table, finish, say
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.cifar10 import read_cifar10
from isobit.benchmark.pretrained import pretrained

NETWORKS = ("cifar10_resnet20", "cifar10_resnet56", "squeezenet1_1", "mobilenet_v2_folded")
COLUMNS = ("network", "weights", "right", "noise over power", "seconds")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--target", default="onnxruntime-x86")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows: list[tuple[str, ...]] = []
    for name in options.networks:
        row = pretrained(name)
        net, images = row.load(), row.evaluation()
        calibration = read_cifar10("train", normalize=row.normalize).take(256) if "cifar" in name else images.every(10)
        test = list(images if "cifar" in name else images.without(calibration))
        data = [x for x, *_ in calibration]
        with torch.no_grad():
            exact = [net(x) for x, *_ in test]
        right, total = accuracy(net, test)
        rows.append((name, "float", f"{right} of {total}", "", ""))
        for rounding in ("none", "gptq"):
            say(f"{name}: {rounding}")
            start = time.perf_counter()
            model = isobit.quantize(net, data, target=options.target, reconstruction=rounding)
            seconds = time.perf_counter() - start
            with torch.no_grad():
                noise = _noise([model(x) for x, *_ in test], exact)
            words = {"none": "to nearest", "gptq": "GPTQ"}[rounding]
            rows.append((name, words, f"{accuracy(model, test)[0]}", f"{noise:.5f}", f"{seconds:.1f}"))
    return finish([Table(title="W8A8", columns=COLUMNS, rows=tuple(rows))], json_file=options.json, records=rows)


def _noise(found: list[Tensor], exact: list[Tensor]) -> float:
    pairs = list(zip(found, exact, strict=True))
    return sum(float((y - x).square().sum()) for y, x in pairs) / sum(float(x.square().sum()) for _, x in pairs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
