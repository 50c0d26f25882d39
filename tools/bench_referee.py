"""The referee on files that other tools make: verdict, what differs, what ran in float, what to change.

    python tools/bench_referee.py [--network mobilenet_v2_folded] [--limit N] [--rival-python NAME=PATH ...]
        [--only NAME ...]

Each tool quantizes the float network from the same images, with its defaults where its name says no more. ONNX Runtime
and OpenVINO run each ONNX file, both sets of LiteRT's kernels a LiteRT file. Each PATH is a Python that has the
tool: nncf (`pip install nncf onnx`), quark, modelopt, edge; see `tools/rivals.py`. Tools without one are left out. The
file of isobit itself stands beside them. The right answers are those of the images that no tool was calibrated on.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import isobit
from bench_output import Table, finish, say
from bench_targets import Subject, subject
from isobit.core.errors import EngineError
from isobit.core.records import Certificate, to_json
from isobit.engines import ENGINES
from isobit.export import export_float
from isobit.graph.capture import capture
from isobit.integer.files import format_of
from rivals import SUFFIX

TOOLS = {
    "ort-minmax": "quantize_static, u8 activations, s8 weights per channel",
    "ort-per-tensor": "the same, per tensor",
    "ort-defaults": "quantize_static, all defaults",
    "nncf-onnx": "nncf.quantize, all defaults",
    "quark-xint8": "AMD Quark, XINT8",
    "quark-a8w8": "AMD Quark, A8W8",
    "modelopt-int8": "NVIDIA ModelOpt, int8",
    "edge-int8": "ai-edge-quantizer, static int8",
    "isobit": "isobit, target onnxruntime-x86",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A tool's file on an engine."""

    tool: str
    engine: str
    certificate: Certificate


def files(of: Subject, tools: Sequence[str], folder: Path, pythons: Mapping[str, str]) -> dict[str, Path]:
    """The file of each tool."""
    images = torch.cat([x for x, *_ in of.calibration])
    model = folder / "float.onnx"
    export_float(capture(of.net, images[:2]), model, example=(images[:2],))
    np.save(folder / "images.npy", images.numpy())
    if "edge-int8" in tools:
        torch.export.save(torch.export.export(of.net.eval(), (images[:1],)), folder / "float.pt2")
    found = {}
    for tool in tools:
        say(f"{tool} quantizes {of.name}")
        found[tool] = folder / f"{tool}{SUFFIX.get(tool, '.onnx')}"
        if tool == "isobit":
            isobit.export(isobit.quantize(of.net, of.calibration.batched(10), target="onnxruntime-x86"), found[tool])
            continue
        python = Path(pythons.get(tool.split("-")[0], sys.executable)).absolute()  # not resolved: a venv is a link
        script = Path(__file__).resolve().with_name("rivals.py")
        command = [python, script, tool, model, folder / "images.npy", found[tool], "--limit", len(images)]
        done = subprocess.run([str(x) for x in command], capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            raise SystemExit(f"{tool} failed:\n{done.stderr[-2000:]}")
    return found


def row(judged: Judged) -> tuple[str, ...]:
    """A row of the table."""
    found = judged.certificate
    (proof,) = [c for c in found.comparisons if c.left == "reference"]
    right = next((f"{a.right} of {a.total}" for a in found.accuracy if a.execution == judged.engine), "")
    first = f"{proof.first.op} {proof.first.name}" if proof.first else ""
    largest = f"{proof.largest:.3g} {proof.unit}" if proof.equal < proof.total else ""
    return (
        TOOLS[judged.tool], judged.engine, found.verdict, f"{proof.equal:,} of {proof.total:,}", largest, first,
        str(len(found.float_islands)), right,
    )  # fmt: skip


def notes(judged: Sequence[Judged]) -> tuple[str, ...]:
    """What the referee found, once for each tool and engine."""
    return tuple(f"{TOOLS[j.tool]}, on {j.engine}: {finding}" for j in judged for finding in j.certificate.findings)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mobilenet_v2_folded")
    parser.add_argument("--limit", type=int, help="this many images alone are verified")
    parser.add_argument("--only", nargs="+", choices=TOOLS)
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino", "litert", "litert-reference"])
    parser.add_argument("--rival-python", nargs="+", default=[], metavar="NAME=PATH", help="a Python with that tool")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pythons = dict(pair.split("=", 1) for pair in options.rival_python)
    own = ("ort", "isobit", *pythons)
    tools = options.only or [t for t in TOOLS if t.split("-")[0] in own]
    of = subject(options.network, options.limit)
    judged = []
    with tempfile.TemporaryDirectory() as temporary:
        for tool, path in files(of, tools, Path(temporary), pythons).items():
            for engine in [e for e in options.engines if ENGINES[e]().format == format_of(path)]:
                say(f"the file of {tool} on {engine}")
                try:
                    certificate = isobit.verify(path, None, of.evaluation.batched(10), engine=engine)
                except EngineError as error:
                    say(f"{tool}: {error}")
                    continue
                judged.append(Judged(tool=tool, engine=ENGINES[engine]().name, certificate=certificate))
    columns = ("made by", "engine", "verdict", "outputs equal", "largest", "differs first", "ops in float", "right")
    table = Table(title=of.name, columns=columns, rows=tuple(row(j) for j in judged), notes=notes(judged))
    records = [{"tool": j.tool, "engine": j.engine, "certificate": to_json(j.certificate)} for j in judged]
    return finish([table], json_file=options.json, records=records)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
