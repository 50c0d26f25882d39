"""Latency of int8 files against the float file, ours beside those of ONNX Runtime's quantizer and of NNCF.

    python tools/bench_latency.py [--networks resnet50 mobilenet_v2] [--batches 1 8] [--rival-python PATH]

One random-weight network, one float ONNX file, one set of random images; each tool quantizes them, and all files are
loaded in one process, twice each, and timed in turns, one thread; the faster load counts. A number is the median over
the rounds of float time / int8 time (higher is faster), with the lowest and the highest round. PATH is a Python with
nncf, openvino and onnxruntime; without it NNCF is left out. Exit code 1: ours is slower than the best rival in three
rounds of four.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

import isobit
from bench_networks import random_network
from bench_output import Table, finish, say
from isobit.benchmark.models import MODELS
from isobit.core.errors import EngineError
from isobit.core.records import Kernel
from isobit.engines import ENGINES, Session
from isobit.engines.latency import interleaved
from isobit.export import export_float
from isobit.graph.capture import capture
from isobit.graph.passes import UnifyGlobalPool

TARGETS = {"onnxruntime": "onnxruntime-x86", "openvino": "openvino-cpu"}
RIVALS = {
    "onnxruntime": ("ort-minmax", "nncf-onnx"),
    "openvino": ("ort-minmax", "nncf-onnx", "nncf-openvino"),
}
HINTS = ("f32", "bf16")
LOADS = 2
"""Sessions of each file: where its memory lies makes one slower than another of the same file."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A loaded file: who quantized it ("float" for nobody), and with which OpenVINO precision for what stays float."""

    tool: str
    hint: str
    session: Session


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median, lowest and highest over the rounds, and the quartile above which a quarter of them lie."""

    middle: float
    low: float
    high: float
    upper: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}–{self.high:.2f})"


@final
class CompiledModel:
    """A file in OpenVINO with any precision hint, also an .xml: what `isobit.engines` does not load."""

    def __init__(self, path: Path, hint: str, threads: int) -> None:
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        compiled = core.compile_model(core.read_model(str(path)), "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
        self._request = compiled.create_infer_request()

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("output",)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._request.infer(list(inputs), share_inputs=True)
        return [np.array(self._request.get_output_tensor(0).data)]

    def kernels(self) -> tuple[Kernel, ...]:
        return ()

    def float_islands(self) -> tuple[str, ...]:
        return ()


def write_float(network: str, images: Tensor, folder: Path) -> Path:
    """The float network as ONNX, batch norm folded and global pooling as one op: what every rival starts from."""
    captured = capture(random_network(network), images[:2])
    UnifyGlobalPool().apply(captured)
    return export_float(captured, folder / f"{network}.onnx", example=(images[:2],))


def write_ours(network: str, images: Tensor, target: str, folder: Path) -> Path:
    """Our file, from the same weights and images."""
    model = isobit.quantize(random_network(network), list(torch.split(images, 4)), target=target)
    return Path(isobit.export(model, folder / f"{network}.{target}.onnx").path)


def write_rival(method: str, python: Path | None, model: Path, images: Path, limit: int) -> Path | None:
    """A rival's file, made in a process of its own; None where no Python with that tool is given."""
    if python is None and method.startswith("nncf"):
        return None
    suffix = ".xml" if method == "nncf-openvino" else ".onnx"
    out = model.with_name(f"{model.stem}.{method}{suffix}")
    tool = Path(__file__).with_name("rivals.py")
    command = [python or sys.executable, tool, method, model, images, out, "--limit", limit]
    subprocess.run([str(x) for x in command], check=True, capture_output=True)
    return out


def load(engine: str, path: Path, hint: str, threads: int) -> Session:
    """A session of the engine; OpenVINO's are all made alike, whatever file they hold."""
    if engine == "openvino":
        return CompiledModel(path, hint, threads)
    return ENGINES[engine]().load(path)


def candidates(
    engine: str, files: dict[str, Path], x: np.ndarray, threads: int = 1
) -> tuple[list[Candidate], list[str]]:
    """Every file in the engine, on OpenVINO once with float32 and once with its default bfloat16.

    The second list says which rival's files the engine does not run.
    """
    found, refused = [], []
    for hint in HINTS if engine == "openvino" else HINTS[:1]:
        for tool, path in files.items():
            try:
                sessions = [load(engine, path, hint, threads) for _ in range(LOADS)]
                sessions[0].run([x])
            except EngineError as error:
                if tool in ("float", "isobit"):
                    raise
                refused.append(f"{tool} was left out: {str(error).replace(str(path), path.name)[:300]}")
                continue
            found += [Candidate(tool=tool, hint=hint, session=session) for session in sessions]
    return found, refused


def measure(
    found: list[Candidate], x: np.ndarray, *, rounds: int, runs: int, clock: Callable[[], float]
) -> list[dict[tuple[str, str], float]]:
    """Median milliseconds of each tool's faster load in each round. Each round starts with another candidate."""
    result = []
    for number in range(rounds):
        turned = found[number % len(found) :] + found[: number % len(found)]
        times = interleaved([c.session for c in turned], [x], runs=runs, warmup=1 if number else 3, clock=clock)
        fastest: dict[tuple[str, str], float] = {}
        for c, t in zip(turned, times, strict=True):
            fastest[c.tool, c.hint] = min(median(t), fastest.get((c.tool, c.hint), float("inf")))
        result.append(fastest)
    return result


def ratio(times: list[dict[tuple[str, str], float]], over: tuple[str, str], under: tuple[str, str]) -> Ratio:
    """Time of `over` / time of `under`, round by round."""
    found = [t[over] / t[under] for t in times]
    return Ratio(middle=median(found), low=min(found), high=max(found), upper=float(np.quantile(found, 0.75)))


def rows(network: str, batch: int, times: list[dict[tuple[str, str], float]]) -> list[dict[str, Any]]:
    """One record for each tool and precision: speed against both floats, and ours against the best rival."""
    tools = [key for key in times[0] if key[0] != "float"]
    floats = [key for key in times[0] if key[0] == "float"]
    found: list[dict[str, Any]] = []
    for tool, hint in tools:
        speed = {f: ratio(times, ("float", f), (tool, hint)) for _, f in floats}
        found.append({"network": network, "batch": batch, "tool": tool, "hint": hint, "speed": speed})
    for row in [r for r in found if r["tool"] == "isobit"]:
        rivals = [r for r in found if r["tool"] != "isobit" and r["hint"] == row["hint"]]
        best = max(rivals, key=lambda r: r["speed"][row["hint"]].middle, default=None)
        if best is not None:
            row["rival"] = best["tool"]
            row["against"] = ratio(times, (best["tool"], row["hint"]), ("isobit", row["hint"]))
    for row in found:
        row["ms"] = median(t[row["tool"], row["hint"]] for t in times)
    return found


def table(engine: str, records: list[dict[str, Any]], notes: tuple[str, ...]) -> Table:
    hints = sorted({r["hint"] for r in records}, reverse=True)
    many = len(hints) > 1
    speeds = [f"float {h} / int8" if many else "float / int8" for h in hints]
    columns = ("network", "batch", *(["precision hint"] if many else []), "tool", "ms", *speeds, "best rival / isobit")
    body = []
    for r in records:
        against = f"{r['against']} {r['rival']}" if "against" in r else ""
        hint = [r["hint"]] if many else []
        speed = [str(r["speed"][h]) for h in hints]
        body.append((r["network"], str(r["batch"]), *hint, r["tool"], f"{r['ms']:.2f}", *speed, against))
    return Table(title=f"Latency on {engine}", columns=columns, rows=tuple(body), notes=notes)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "mobilenet_v2"], choices=MODELS)
    parser.add_argument("--engines", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--shape", nargs=3, type=int, default=[3, 224, 224])
    parser.add_argument("--images", type=int, default=16, help="images to calibrate on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=10, help="runs of each file in a round, batch 1; fewer for more")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: where other processes want the core too")
    parser.add_argument("--rival-python", type=Path, help="a Python with nncf, openvino and onnxruntime")
    parser.add_argument("--keep", type=Path, help="a folder for the files, to look into them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = torch.randn(options.images, *options.shape, generator=torch.Generator().manual_seed(0))
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in options.engines}
    skipped: set[str] = set()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", images.numpy())
        for network in options.networks:
            model = write_float(network, images, folder)
            made = {
                m: write_rival(m, options.rival_python, model, folder / "images.npy", options.images)
                for m in dict.fromkeys(itertools.chain(*(RIVALS[e] for e in options.engines)))
            }
            skipped |= {f"{m} was left out: no --rival-python." for m, path in made.items() if path is None}
            for engine in options.engines:
                ours = write_ours(network, images, TARGETS[engine], folder)
                rivals = {m: path for m in RIVALS[engine] if (path := made[m]) is not None}
                loaded, refused = candidates(engine, {"float": model, "isobit": ours, **rivals}, images[:1].numpy())
                skipped |= set(refused)
                for batch in options.batches:
                    say(f"{network} on {engine}, batch {batch}")
                    x = np.ascontiguousarray(images[:1].expand(batch, -1, -1, -1).numpy())
                    runs = max(2, options.runs // batch)
                    times = measure(loaded, x, rounds=options.rounds, runs=runs, clock=CLOCKS[options.clock])
                    found[engine] += rows(network, batch, times)
    notes = (
        f"{options.rounds} rounds in turns, one thread, {options.clock} time; median (lowest–highest) of the rounds.",
        *sorted(skipped),
    )
    tables = [table(engine, found[engine], notes) for engine in options.engines]
    missed = [
        f"{r['network']} batch {r['batch']} on {engine} ({r['hint']}): {r['rival']} is faster, {r['against']}"
        for engine in options.engines
        for r in found[engine]
        if "against" in r and r["against"].upper < 1
    ]
    plain = [
        {k: v if not isinstance(v, (dict, Ratio)) else str(v) for k, v in r.items()} | {"engine": engine}
        for engine in options.engines
        for r in found[engine]
    ]
    return finish(tables, json_file=options.json, records=plain, failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
