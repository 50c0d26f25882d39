"""Latency of int8 files against the float file, ours beside those of other tools, on each engine.

    python tools/bench_latency.py [--networks resnet50 mobilenet_v2 …] [--batches 1 8] [--rival-python PATH]
        [--litert-python PATH] [--torchao-python PATH]

Random-weight networks, one float file of each, one set of random images; each tool quantizes them, and all files are
loaded in one process, four times each, in orders drawn anew, and timed in turns, one thread; the fastest load counts.
A number is the median over the rounds of float time / int8 time (higher is faster), with the lowest and the highest
round. The Pythons have the rivals: nncf, openvino and onnxruntime; litert-torch and ai-edge-quantizer; torchao.
Without one, its rivals are left out. Exit code 1: ours is slower than the best rival in three rounds of four.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

import isobit
from bench_networks import random_network
from bench_output import Table, finish, say
from bench_sessions import CompiledProgram, LiteRtModel, OpenVinoModel
from isobit.benchmark.models import MODELS
from isobit.core.errors import EngineError
from isobit.core.litert_file import missing
from isobit.engines import ENGINES, Session
from isobit.engines.executorch import EXECUTORCH, executorch
from isobit.engines.latency import interleaved
from isobit.export import export_float
from isobit.export.litert import write_litert
from isobit.graph.capture import capture
from isobit.graph.passes import UnifyGlobalPool
from rivals import AS_IT_IS


@dataclass(frozen=True, kw_only=True)
class Contest:
    """An engine, what isobit exports for it, and who else makes files for it: methods of rivals.py.

    A new engine (executorch, …) is a row in `CONTESTS`, a new rival a function in rivals.py, a row in `RIVALS`, and its
    Python an option of `main`. A row of an engine that this isobit does not have is left out. An engine whose float
    file is of a new kind gets it in `write_floats`; one whose session refuses the files of others gets one in
    bench_sessions.py.
    """

    target: str
    rivals: tuple[str, ...]
    suffix: str = ".onnx"


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Which option names its Python, "" for this one; what it starts from; whether its files have one batch size."""

    python: str = ""
    source: str = ".onnx"
    suffix: str = ".onnx"
    fixed_batch: bool = False


CONTESTS = {
    "onnxruntime": Contest(target="onnxruntime-x86", rivals=("ort-minmax", "nncf-onnx")),
    "openvino": Contest(target="openvino-cpu", rivals=("ort-minmax", "nncf-onnx", "nncf-openvino")),
    "litert": Contest(target="litert", rivals=("ai-edge",), suffix=".tflite"),
    "inductor": Contest(target="openvino-cpu", rivals=("torchao-x86",), suffix=".pt2"),
    "executorch": Contest(target="executorch-xnnpack", rivals=("executorch-xnnpack",), suffix=".pt2"),
}

RIVALS = {
    "ort-minmax": Rival(),
    "nncf-onnx": Rival(python="rival_python"),
    "nncf-openvino": Rival(python="rival_python", suffix=".xml"),
    "torchao-x86": Rival(python="torchao_python", source=".pt2", suffix=".pt2"),
    "executorch-xnnpack": Rival(python="executorch_python", source=".pt2", suffix=".pt2"),
    "ai-edge": Rival(python="litert_python", source=".pt2", suffix=".tflite", fixed_batch=True),
}

SHAPES = {"cifar10": (3, 32, 32), "digits": (1, 8, 8), "tiny_resnet8": (3, 32, 32)}
"""Of one sample, by the first letters of a network's name; 3 × 224 × 224 for all others."""

NETWORKS = ("resnet50", "mobilenet_v2", "squeezenet1_1", "cifar10_resnet20", "vit_tiny")
IMAGE_NETWORKS = tuple(name for name in MODELS if not name.startswith("bert"))
HINTS = ("f32", "bf16")
LOADS = 4
"""Sessions of each file, loaded in another order each time: where its memory lies makes one slower than another of the
same file."""
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


def write_float(network: str, images: Tensor, folder: Path) -> Path:
    """The float network as ONNX, batch norm folded and global pooling as one op."""
    captured = capture(random_network(network), images[:2])
    UnifyGlobalPool().apply(captured)
    return export_float(captured, folder / f"{network}.onnx", example=(images[:2],))


def write_floats(network: str, images: Tensor, folder: Path) -> dict[str, Path]:
    """The float network as the rivals and engines want it, by suffix: ONNX, LiteRT, and a file of torch.export."""
    found = {".onnx": write_float(network, images, folder), ".pt2": folder / f"{network}.pt2"}
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(random_network(network), (images[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, found[".pt2"], extra_files=AS_IT_IS)
    if not missing():
        found[".tflite"] = folder / f"{network}.tflite"
        write_litert(found[".tflite"], onnx.load(found[".onnx"]), {})
    return found


def write_ours(network: str, images: Tensor, contest: Contest, folder: Path) -> Path:
    """Our file, from the same weights and images."""
    model = isobit.quantize(random_network(network), list(torch.split(images, 4)), target=contest.target)
    return Path(isobit.export(model, folder / f"{network}.{contest.target}{contest.suffix}").path)


def write_rival(method: str, python: Path | None, model: Path, images: Path, limit: int, batch: int = 1) -> Path | str:
    """A rival's file, made in a process of its own; or why there is none."""
    rival = RIVALS[method]
    if python is None and rival.python:
        return f"{method} was left out: no --{rival.python.replace('_', '-')}."
    out = model.with_name(f"{model.stem}.{method}{batch if rival.fixed_batch else ''}{rival.suffix}")
    tool = Path(__file__).with_name("rivals.py")
    command = [python or sys.executable, tool, method, model, images, out, "--limit", limit]
    command += ["--batch", batch] if rival.fixed_batch else []
    done = subprocess.run([str(x) for x in command], check=False, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no text"]
        return f"{method} made no file of {model.stem}: {last[0][:200]}"
    return out


def load(engine: str, path: Path, hint: str, threads: int, tool: str) -> Session:
    """A session of the engine; OpenVINO's and LiteRT's are made alike, whatever file they hold."""
    match engine:
        case "openvino":
            return OpenVinoModel(path, hint, threads)
        case "litert":
            return LiteRtModel(path, threads)
        case "executorch" if tool != "isobit":  # as they are; isobit's are written anew, with signed bytes
            return replace(executorch(), rewrite=None).load(path)
        case "inductor":
            return CompiledProgram(path, own=tool == "isobit")
    return ENGINES[engine]().load(path)


def candidates(
    engine: str, files: dict[str, Path], x: np.ndarray, threads: int = 1
) -> tuple[list[Candidate], list[str]]:
    """Every file in the engine, on OpenVINO once with float32 and once with its default bfloat16.

    The second list says which rival's files the engine does not run.
    """
    wanted = [(h, *file) for h in (HINTS if engine == "openvino" else HINTS[:1]) for file in files.items()]
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    shuffled = random.Random(0)
    for _ in range(LOADS):
        for hint, tool, path in shuffled.sample(wanted, len(wanted)):
            try:
                session = load(engine, path, hint, threads, tool)
                session.run([x])
            except EngineError as error:
                if tool in ("float", "isobit"):
                    raise
                refused[tool] = f"{tool} was left out: {str(error).replace(str(path), path.name)[:300]}"
                continue
            found.append(Candidate(tool=tool, hint=hint, session=session))
    return found, list(refused.values())


def measure(
    found: list[Candidate], x: np.ndarray, *, rounds: int, runs: int, clock: Callable[[], float]
) -> list[dict[tuple[str, str], float]]:
    """Median milliseconds of each tool's fastest load in each round."""
    result = []
    for number in range(rounds):
        times = interleaved([c.session for c in found], [x], runs=runs, warmup=1 if number else 3, clock=clock)
        fastest: dict[tuple[str, str], float] = {}
        for c, t in zip(found, times, strict=True):
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


def contests(
    network: str, engines: list[str], folder: Path, options: argparse.Namespace
) -> Iterator[tuple[str, list[dict[str, Any]], set[str]]]:
    """Make all files of a network and measure them; per engine and batch size its records, and what was left out."""
    images = torch.randn(options.images, *shape_of(network, options.shape), generator=torch.Generator().manual_seed(0))
    np.save(folder / f"{network}.npy", images.numpy())
    floats = write_floats(network, images, folder)
    made: dict[tuple[str, int], Path | str] = {}
    for engine in engines:
        contest = CONTESTS[engine]
        ours = write_ours(network, images, contest, folder)
        for batch in options.batches:
            say(f"{network} on {engine}, batch {batch}")
            rivals: dict[str, Path | str] = {}
            for method in contest.rivals:
                rival = RIVALS[method]
                key = (method, batch if rival.fixed_batch else 1)
                if key not in made:
                    python = getattr(options, rival.python) if rival.python else None
                    source, seen = floats[rival.source], folder / f"{network}.npy"
                    made[key] = write_rival(method, python, source, seen, options.images, key[1])
                rivals[method] = made[key]
            files = {m: path for m, path in rivals.items() if isinstance(path, Path)}
            x = np.ascontiguousarray(images[:1].expand(batch, -1, -1, -1).numpy())
            loaded, refused = candidates(engine, {"float": floats[contest.suffix], "isobit": ours, **files}, x)
            runs = max(2, options.runs // batch)
            times = measure(loaded, x, rounds=options.rounds, runs=runs, clock=CLOCKS[options.clock])
            left_out = {text for text in rivals.values() if isinstance(text, str)} | set(refused)
            yield engine, rows(network, batch, times), left_out


def shape_of(network: str, given: Sequence[int] | None) -> Sequence[int]:
    """The shape of one sample."""
    return given or next((s for name, s in SHAPES.items() if network.startswith(name)), (3, 224, 224))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=IMAGE_NETWORKS)
    parser.add_argument(
        "--engines", nargs="+", choices=[n for n in CONTESTS if n in ENGINES], help="default: all installed"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--shape", nargs=3, type=int, help="of one sample, for all networks")
    parser.add_argument("--images", type=int, default=16, help="images to calibrate on")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=10, help="runs of each file in a round, batch 1; fewer for more")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: where other processes want the core too")
    parser.add_argument("--rival-python", type=Path, help="a Python with nncf, openvino and onnxruntime")
    parser.add_argument("--litert-python", type=Path, help="a Python with litert-torch and ai-edge-quantizer")
    parser.add_argument("--torchao-python", type=Path, help="a Python with torch and torchao")
    environment = EXECUTORCH.python if EXECUTORCH.installed() else None
    parser.add_argument("--executorch-python", type=Path, default=environment, help="a Python with executorch, torchao")
    parser.add_argument("--keep", type=Path, help="a folder for the files, to look into them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    engines = options.engines or [n for n in CONTESTS if n in ENGINES and not ENGINES[n]().missing()]
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    skipped: set[str] = set()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for network in options.networks:
            for engine, records, left_out in contests(network, engines, folder, options):
                found[engine] += records
                skipped |= left_out
    notes = (
        f"{options.rounds} rounds in turns, one thread, {options.clock} time; median (lowest–highest) of the rounds.",
        *sorted(skipped),
    )
    tables = [table(engine, found[engine], notes) for engine in engines]
    missed = [
        f"{r['network']} batch {r['batch']} on {engine} ({r['hint']}): {r['rival']} is faster, {r['against']}"
        for engine in engines
        for r in found[engine]
        if "against" in r and r["against"].upper < 1
    ]
    plain = [
        {k: str(v) if isinstance(v, Ratio) else v for k, v in r.items()}
        | {"engine": engine, "speed": {hint: str(v) for hint, v in r["speed"].items()}}
        for engine in engines
        for r in found[engine]
    ]
    return finish(tables, json_file=options.json, records=plain, failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
