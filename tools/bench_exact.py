"""What exactness by construction costs and gives: accuracy, speed, and outputs that engines share.

    python tools/bench_exact.py [--networks cifar10_resnet20 …] [--images 1000] [--runs 200] [--json FILE]

Each network is quantized for `onnxruntime-x86` by default settings and with `exact`. For each file: images right on the
engine, outputs that are those of ONNX Runtime, and the median latency of one image, one thread, CPU time, in turns
with the other file. Exit code 1: with `exact`, an output differs between ONNX Runtime, OpenVINO and LiteRT (XNNPACK).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np

import isobit
from bench_output import Table, finish, say
from bench_portability import NETWORKS, network
from isobit.engines import ENGINES, Session
from isobit.engines.latency import interleaved
from isobit.export.litert import write_litert
from isobit.integer.files import load_qdq, output_step, read_metadata

SAME = ("openvino", "litert")
COLUMNS = (
    "network",
    "engine",
    "right",
    "right, exact",
    "as on ONNX Runtime",
    "the same, exact",
    "ms",
    "ms, exact",
    "ratio",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS[:4]), choices=NETWORKS)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows, missed, records = [], [], []
    for name in options.networks:
        say(name)
        net, data, test = network(name, options.images)
        files = {}
        with tempfile.TemporaryDirectory() as folder:
            for exact in (False, True):
                model = isobit.quantize(net, data, target="onnxruntime-x86", exact=exact)
                path = isobit.export(model, Path(folder) / f"{exact}.onnx").path
                write_litert(path.with_suffix(".tflite"), load_qdq(path), read_metadata(path))
                files[exact] = path
            step = {exact: output_step(load_qdq(path)) for exact, path in files.items()}
            first: dict[bool, np.ndarray] = {}
            for engine in ("onnxruntime", *SAME):
                made = ENGINES[engine]()
                suffix = ".tflite" if made.format == "litert" else ".onnx"
                sessions = {exact: made.load(path.with_suffix(suffix)) for exact, path in files.items()}
                outputs = {exact: outputs_of(session, test, step[exact]) for exact, session in sessions.items()}
                first = first or outputs
                labels = np.concatenate([batch[-1].numpy() for batch in test])
                right = [int((y.argmax(1) == labels).sum()) for y in outputs.values()]
                same = [int((y == first[exact]).sum()) for exact, y in outputs.items()]
                one = [x[:1].numpy() for x in test[0][:-1]]
                times = [
                    median(t) for t in interleaved(list(sessions.values()), one, runs=options.runs, clock=process_time)
                ]
                total = outputs[True].size
                rows.append((name, engine, *map(str, right), *(f"{s:,} of {total:,}" for s in same),
                             *(f"{t:.2f}" for t in times), f"{times[1] / times[0]:.2f}"))  # fmt: skip
                records.append({"network": name, "engine": engine, "right": right, "same": same, "milliseconds": times})
                if same[1] < total:
                    missed.append(f"{name}: {total - same[1]:,} outputs of {engine} differ from ONNX Runtime's")
    table = Table(title=f"Exact by construction, {options.images} images at most", columns=COLUMNS, rows=tuple(rows))
    return finish([table], json_file=options.json, records=records, failed=missed)


def outputs_of(session: Session, test: list[tuple[object, ...]], step: float | None) -> np.ndarray:
    """The levels of all outputs."""
    found = np.concatenate([session.run([x.numpy() for x in batch[:-1]])[0] for batch in test])  # type: ignore[attr-defined]
    return np.rint(found / step).astype(np.int64) if step else found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
