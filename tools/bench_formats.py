"""The vendors' formats of a trained network: integers read back, and top-1 where a real engine takes the file.

    python tools/bench_formats.py [--network cifar10_resnet20] [--images 1000]

For each format of each target: of the integers of weights and biases in the simulation, those that the file's
encodings make of its floats. Of OpenVINO's IR and the ONNX file on OpenVINO: images right, and outputs equal to each
other. Exit code 1: an integer differs, or the IR gets fewer images right than the ONNX file.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from torch import fx

import isobit
from bench_output import Table, finish, say
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.pretrained import pretrained
from isobit.engines import ENGINES
from isobit.export import READERS
from isobit.graph.convert import convert, integers
from isobit.targets import TARGETS

COLUMNS = ("target", "format", "bytes", "integers equal", "tensors with grids", "notes")
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def simulated(model: fx.GraphModule) -> list[np.ndarray]:
    """q - zero_point of each weight, and q of each bias."""
    held = integers(convert(model))
    found = [held[name].numpy() for name in held if name.endswith("bias_q")]
    for name in (n for n in held if n.endswith("integer.q")):
        zero_point = held[name.removesuffix("q") + "zero_point"]
        q, shape = held[name].int(), [-1] + [1] * (held[name].dim() - 1)
        found.append((q - (zero_point.int().reshape(shape) if zero_point.dim() else zero_point.int())).numpy())
    return found


def equal_integers(expected: list[np.ndarray], read: dict[str, np.ndarray]) -> tuple[int, int]:
    """How many integers of the simulation are in the file, and how many there are."""
    held = {(k.shape, k.astype(np.int32).tobytes()) for k in read.values()}
    right = sum(k.size for k in expected if (k.shape, k.astype(np.int32).tobytes()) in held)
    return right, sum(k.size for k in expected)


def on_openvino(model: fx.GraphModule, folder: Path, test: list[Any]) -> tuple[tuple[str, ...], list[str]]:
    """Images right with the ONNX file and with the IR, and how many outputs are equal."""
    session = ENGINES["openvino"]().load(isobit.export(model, folder / "net.onnx").path)
    path = isobit.export(model, folder / "net.xml", format="openvino").path
    compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", SETTINGS)
    right, equal, total = [0, 0], 0, 0
    for x, y in test:
        onnx_result, ir_result = session.run([x.numpy()])[0], compiled([x.numpy()])[0]
        for index, result in enumerate((onnx_result, ir_result)):
            right[index] += int((result.argmax(1) == y.numpy()).sum())
        equal, total = equal + int((onnx_result == ir_result).sum()), total + ir_result.size
    row = (f"{accuracy(model, test)[0]}", f"{right[0]}", f"{right[1]}", f"{equal:,} of {total:,}")
    missed = [f"the IR gets {right[1]} images right, the ONNX file {right[0]}"] if right[1] < right[0] else []
    return row, missed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10_resnet20")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    known = pretrained(options.network)
    net, data, test = known.load(), list(known.calibration()), list(known.evaluation().take(options.images))
    inputs, rows, missed, engine = [x for x, *_ in data], [], [], ()
    for target, profile in TARGETS.items():
        formats = [f for f in profile.formats if f in READERS]
        if not formats:
            continue
        say(f"{options.network} for {target}")
        model = isobit.quantize(net, inputs, target=target)
        for format in formats:
            with tempfile.TemporaryDirectory() as folder:
                artifact = isobit.export(model, Path(folder) / "net.onnx", format=format)
                read = READERS[format]().read_back(artifact.path)
                size = sum(p.stat().st_size for p in (artifact.path, *artifact.beside))
            right, total = equal_integers(simulated(model), dict(read.integers)) if read.integers else (0, 0)
            missed += [f"{target}, {format}: {total - right} integers differ"] if right != total else []
            counted = f"{right:,} of {total:,}" if total else "holds none"
            rows.append((target, format, f"{size:,}", counted, f"{len(read.activations)}", "; ".join(artifact.notes)))
        if "openvino" in formats:
            with tempfile.TemporaryDirectory() as folder:
                engine, worse = on_openvino(model, Path(folder), test)
            missed += worse
    tables = [Table(title=f"{options.network}, files read back", columns=COLUMNS, rows=tuple(rows))]
    if engine:
        columns = ("simulation", "ONNX on OpenVINO", "IR on OpenVINO", "outputs of both equal")
        tables.append(Table(title=f"Images right of {options.images}", columns=columns, rows=(engine,)))
    return finish(tables, json_file=options.json, records=rows, failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
