"""Weights alone at 8, 4 and 2 bits, and dynamic ranges: size and speed against the engine's own float.

    python tools/bench_weight_only.py [--width 2048] [--layers 4] [--batches 1 32] [--engines onnxruntime openvino]

A stack of linear layers with random weights, ReLU in between. All files are loaded in one process and timed in turns,
one thread; a speed is the median over the rounds of float time / quantized time (higher is faster), with the lowest and
the highest round. Then the accuracy of a multilayer perceptron, trained on scikit-learn's digits, in the engines.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isobit
from bench_output import Table, finish, say
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data.digits import read_digits
from isobit.engines import ENGINES, Session
from isobit.engines.latency import interleaved
from isobit.export import export_float
from isobit.graph.capture import capture
from isobit.targets import TARGETS, MatMulNBits

LEVEL_0 = "onnxruntime-weights at accuracy_level 0"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DIGITS_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class Form:
    """One file: for which target, how many bits, and what else is set."""

    target: str
    bits: int
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def label(self) -> str:
        """The target, and what is not its default."""
        zero_points = ", no zero points" if self.settings.get("symmetric_weights") else ""
        return f"{self.target}{zero_points}{self.note}"


PLAIN = {"symmetric_weights": True}
FORMS = {
    "onnxruntime": (
        *(Form(target="onnxruntime-weights", bits=bits) for bits in (8, 4, 2)),
        *(Form(target="onnxruntime-weights", bits=bits, settings=PLAIN) for bits in (4, 2)),
        *(Form(target=LEVEL_0, bits=bits) for bits in (8, 4, 2)),
        Form(target="openvino-weights", bits=4, note=", on this engine"),
        Form(target="onnxruntime-dynamic", bits=8),
        Form(target="onnxruntime-x86", bits=8),
    ),
    "openvino": (
        *(Form(target="openvino-weights", bits=bits) for bits in (8, 4, 2)),
        *(Form(target="openvino-weights", bits=bits, settings=PLAIN) for bits in (8, 4)),
        Form(target="openvino-cpu", bits=8),
    ),
}


def stack(width: int, layers: int) -> nn.Sequential:
    """Linear layers with weights of standard deviation sqrt(2 / width), so that activations keep their size."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=(2 / width) ** 0.5)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def write(net: nn.Module, x: Tensor, form: Form, path: Path) -> Path:
    """The file of one form."""
    model = isobit.quantize(net, [x], target=form.target, bits=form.bits, **form.settings)
    return Path(isobit.export(model, path).path)


def speeds(engine: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One record for each form and batch: bytes, milliseconds, and the ratios round by round."""
    net = stack(options.width, options.layers)
    x = torch.randn(max(options.batches), options.width, generator=torch.Generator().manual_seed(0))
    forms: list[Form | None] = [None, *FORMS[engine]]
    sessions: list[Session] = []
    sizes: list[int] = []
    for number, form in enumerate(forms):
        say(f"{engine}: {'float' if form is None else f'{form.label}, {form.bits} bits'}")
        path = folder / f"{engine}.{number}.onnx"
        if form is None:
            export_float(capture(net, x[:2]), path, example=(x[:2],))
        else:
            write(net, x, form, path)
        sessions.append(ENGINES[engine]().load(path))
        sizes.append(path.stat().st_size)
        path.unlink()
    found: list[dict[str, Any]] = []
    for batch in options.batches:
        say(f"{engine}: batch {batch}")
        rounds = [turn(sessions, x[:batch].numpy(), number, options) for number in range(options.rounds)]
        for i, form in enumerate(forms):
            ratios = [times[0] / times[i] for times in rounds]
            found.append(
                {
                    "engine": engine, "form": "float" if form is None else form.label, "batch": batch,
                    "bits": 32 if form is None else form.bits, "bytes": sizes[i],
                    "ms": median(times[i] for times in rounds), "speed": median(ratios), "low": min(ratios),
                    "high": max(ratios),
                }
            )  # fmt: skip
    return found


def turn(sessions: list[Session], x: np.ndarray, number: int, options: argparse.Namespace) -> list[float]:
    """The median milliseconds of each session in one round; each round starts with another one."""
    order = [(i + number) % len(sessions) for i in range(len(sessions))]
    times = interleaved([sessions[i] for i in order], [x], runs=options.runs, warmup=1, clock=CLOCKS[options.clock])
    found = dict(zip(order, map(median, times), strict=True))
    return [found[i] for i in range(len(sessions))]


def speed_table(engine: str, records: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    """One row for each form, the batches side by side."""
    rows = []
    for first in [r for r in records if r["batch"] == options.batches[0]]:
        same = [r for r in records if (r["form"], r["bits"]) == (first["form"], first["bits"])]
        cells = [f"{r['ms']:.2f}, {r['speed']:.2f} ({r['low']:.2f}–{r['high']:.2f})" for r in same]
        rows.append((first["form"], str(first["bits"]), f"{first['bytes'] / 1e6:.1f}", *cells))
    shape = f"{options.layers} × Linear {options.width}²"
    note = f"{options.rounds} rounds of {options.runs} runs in turns, one thread, {options.clock} time; groups of 32."
    columns = ("target", "bits", "MB", *(f"batch {b}: ms, float / this" for b in options.batches))
    return Table(title=f"{shape} on {engine}", columns=columns, rows=tuple(rows), notes=(note,))


def trained_mlp() -> nn.Sequential:
    """64 → 256 → 256 → 10 on the training digits: Adam, 30 epochs, seed 0."""
    torch.manual_seed(0)
    width = DIGITS_WIDTH
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    [(x, y)] = read_digits("train").batched(10_000)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(30):
        for chosen in torch.split(torch.randperm(len(x)), 64):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(x[chosen]), y[chosen]))
            optimizer.step()
    return net.eval()


def accuracies(engines: list[str], folder: Path) -> list[dict[str, Any]]:
    """Digits right of 450 in each form, on the engine, with the certificate's verdict."""
    net, test = trained_mlp(), read_digits("test")
    right, total = accuracy(net, test)
    found: list[dict[str, Any]] = [{"engine": "torch", "form": "float", "bits": 32, "right": right, "total": total}]
    for engine in engines:
        for form in FORMS[engine]:
            say(f"digits on {engine}: {form.label}, {form.bits} bits")
            model = isobit.quantize(net, read_digits("train"), target=form.target, bits=form.bits, **form.settings)
            path = Path(isobit.export(model, folder / "digits.onnx").path)
            proof = isobit.verify(path, model, test, engine=engine)
            seen = next(a for a in proof.accuracy if a.execution == engine)
            found.append(
                {
                    "engine": engine, "form": form.label, "bits": form.bits, "right": seen.right, "total": seen.total,
                    "verdict": proof.verdict, "bytes": path.stat().st_size,
                    "differences": {f"{c.left} - {c.right}": c.largest for c in proof.comparisons},
                }
            )  # fmt: skip
    return found


def accuracy_table(records: list[dict[str, Any]]) -> Table:
    """One row for each form and engine."""
    rows = []
    for r in records:
        found = list(r.get("differences", {}).values())
        differences = [f"{d:.2g}" for d in (found[0], found[1])] if found else ["", ""]
        size = f"{r['bytes'] / 1e3:.0f}" if "bytes" in r else ""
        rows.append(
            (r["form"], str(r["bits"]), r["engine"], size, f"{r['right']} of {r['total']}", r.get("verdict", ""),
             *differences)
        )  # fmt: skip
    columns = (
        "target",
        "bits",
        "run by",
        "kB",
        "digits right",
        "verdict",
        "|reference - engine|",
        "|simulation - reference|",
    )
    note = f"64 → {DIGITS_WIDTH} → {DIGITS_WIDTH} → 10, ReLU. Differences are the largest, absolute or in steps."
    return Table(title="Digits, weights alone and dynamic", columns=columns, rows=tuple(rows), notes=(note,))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--engines", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=4, help="runs of each file in a round")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: where other processes want the core too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    profile = TARGETS["onnxruntime-weights"]
    TARGETS[LEVEL_0] = replace(profile, name=LEVEL_0, form=MatMulNBits(accuracy_level=0))
    try:
        with tempfile.TemporaryDirectory() as folder:
            records = {engine: speeds(engine, options, Path(folder)) for engine in options.engines}
            found = accuracies(options.engines, Path(folder))
    finally:
        del TARGETS[LEVEL_0]
    tables = [speed_table(engine, records[engine], options) for engine in options.engines]
    everything = [*(r for engine in options.engines for r in records[engine]), *found]
    return finish([*tables, accuracy_table(found)], json_file=options.json, records=everything)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
