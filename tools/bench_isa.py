"""One file on several instruction sets: how many outputs differ from the integer reference, before and after
`avoid_saturation`, and what that costs.

    python tools/bench_isa.py FOLDER [--networks mobilenet_v2_folded cifar10_resnet20] [--images 50]

FOLDER holds the emulated machines of `tools/isa.py`, and is filled where it is empty. Accuracy is that of ONNX Runtime
on this machine over all test images: the 1,000 of CIFAR-10's lossless subset, or the 450 of the ImageNet sample that
were not calibrated on. Exit code 1: a file quantized with `avoid_saturation` computes something else on another
machine than here, or, on ONNX Runtime, than the reference; or a proof is missing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

import isobit
from bench_output import Table, finish, say
from deployed import right_in_engine
from isobit.benchmark.pretrained import pretrained
from isobit.core.records import Certificate, from_json, to_json
from isobit.engines import ENGINES
from isobit.verify import verify
from machines import MACHINES, Emulated, set_up

TARGETS = {"onnxruntime": "onnxruntime-x86", "openvino": "openvino-cpu"}
ONEDNN = ("AVX2", "AVX512_CORE")
COLUMNS = ("network", "engine", "instructions", "avoid_saturation", "channels that can saturate", "changed",
           "right of all", "right of these", "differ from the reference", "largest", "from this machine")  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", default=["cifar10_resnet20", "mobilenet_v2_folded"])
    parser.add_argument("--engines", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--images", type=int, default=50, help="on each machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-openvino", nargs=3, type=Path, metavar=("FILE", "DATA", "RESULT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.as_openvino:
        path, data, result = options.as_openvino
        session = ENGINES["openvino"]().load(path)
        np.save(result, session.run([torch.load(data)[0].numpy()])[0])
        print(json.dumps(to_json(verify(path, None, [torch.load(data)], engine=ENGINES["openvino"]()))))
        return 0
    set_up(options.folder)
    rows: list[tuple[str, ...]] = []
    missed: list[str] = []
    for name in options.networks:
        for engine in options.engines:
            for avoid in (False, True):
                say(f"{name}: {engine}{', avoid_saturation' if avoid else ''}")
                rows += measured(name, engine, avoid, options.folder, options.images, missed)
    title = f"The same file on several instruction sets, {options.images} images each"
    return finish(
        [Table(title=title, columns=COLUMNS, rows=tuple(rows))], json_file=options.json, records=rows, failed=missed
    )


def measured(
    name: str, engine: str, avoid: bool, machines: Path, images: int, missed: list[str]
) -> list[tuple[str, ...]]:
    """A row for each instruction set."""
    calibration, test = data_of(name)
    model = isobit.quantize(pretrained(name).load(), calibration, target=TARGETS[engine], avoid_saturation=avoid)
    few = tuple(torch.cat(parts)[:images] for parts in zip(*test, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        path = isobit.export(model, Path(folder) / "net.onnx").path
        right = f"{right_in_engine(path, engine, test)}"
        found = certificates(path, few, engine, machines, Path(folder))
    rows, changed = [], changes(model)
    for certificate, elsewhere in found:
        comparison = certificate.comparisons[0]
        risks = [r for r in (*certificate.risks, *certificate.older_risks) if r.kind == "pair"]
        differ = comparison.total - comparison.equal
        here = next(f"{a.right} of {a.total}" for a in certificate.accuracy if a.execution != "reference")
        rows.append((
            name, engine, certificate.instruction_set, "yes" if avoid else "no",
            f"{sum(len(r.channels) for r in risks)} of {sum(channels(model))}", changed, right, here,
            f"{differ:,} of {comparison.total:,}", f"{comparison.largest:g} {comparison.unit}", f"{elsewhere:,}",
        ))  # fmt: skip
        if avoid and (certificate.risks or certificate.older_risks):
            missed.append(f"{name}, {engine}: {certificate.risks or certificate.older_risks}")
        if avoid and (elsewhere or (differ and engine == "onnxruntime")):
            missed.append(f"{name}, {engine}, {certificate.instruction_set}: {differ} outputs differ")
        right = changed = ""
    return rows


def data_of(name: str) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
    """Calibration inputs, and test images with labels that are none of them."""
    row = pretrained(name)
    if row.data == "cifar10":
        return [x for x, *_ in row.calibration()], list(row.evaluation())
    every = row.evaluation()
    few = every.every(10)
    return [x for x, *_ in few], list(every.without(few))


def certificates(
    path: Path, few: tuple[Tensor, ...], engine: str, machines: Path, folder: Path
) -> list[tuple[Certificate, int]]:
    """On this machine as it is, and on the others; how many outputs are not those of this machine."""
    found = [(verify(path, None, [few], engine=ENGINES[engine]()), 0)]
    here = ENGINES[engine]().load(path).run([few[0].numpy()])[0]
    if engine == "onnxruntime":
        for machine in (Emulated(machine=m, folder=machines) for m in MACHINES):
            elsewhere = machine.load(path).run([few[0].numpy()])[0]
            found.append((verify(path, None, [few], engine=machine), int((elsewhere != here).sum())))
        return found
    torch.save(few, folder / "data.pt")
    for limit in ONEDNN:
        files = [str(path), str(folder / "data.pt"), str(folder / "result.npy")]
        command = [sys.executable, __file__, str(machines), "--as-openvino", *files]
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": limit}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        certificate = from_json(Certificate, json.loads(done.stdout.splitlines()[-1]))
        found.append((certificate, int((np.load(folder / "result.npy") != here).sum())))
    return found


def channels(model: fx.GraphModule) -> Sequence[int]:
    """The output channels of all layers with quantized weights."""
    return [m.weight.shape[0] for m in model.modules() if hasattr(m, "weight_slot")]


def changes(model: Any) -> str:
    """How many channels were changed, and by how much at most."""
    found = model.meta.get("saturation", ())
    if not found:
        return ""
    return (
        f"{sum(len(f.channels) for f in found)} in {len(found)} layers, steps up to {max(f.factor for f in found):.2f} "
        f"times as large, {sum(f.clamped for f in found)} weights moved, {sum(f.filled for f in found)} large biases"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
