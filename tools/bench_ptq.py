"""What post-training quantization costs: time and peak memory, ours beside ONNX Runtime's quantizer and NNCF.

    python tools/bench_ptq.py [--networks resnet50 mobilenet_v2] [--only NAME ...] [--rival-python PATH]

Each tool quantizes the same random-weight network from the same 64 images of 224 x 224, in a fresh process with its
own number of threads, the tools in turns; a number is the median over the repetitions. Wall and CPU seconds count
neither imports nor the reading of network and images; the whole process is given beside them. Peak memory is the whole
process's. Rivals start from a float ONNX file and write the quantized one in the same step, isobit starts from the
PyTorch network: `from PyTorch to file` adds the export, of the quantized network for isobit, of the float one by
torch.onnx.export for the rivals. PATH is a Python with nncf, openvino and onnxruntime. Exit code 1: isobit with min-max
ranges took longer than the fastest rival, or isobit more memory than the leanest rival with percentiles or entropy.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rivals import memory, pin

OURS: dict[str, dict[str, Any]] = {
    "isobit": {},
    "isobit min_max": {"reconstruction": "none"},
    "isobit percentile": {"reconstruction": "none", "activation_observer": "percentile"},
    "isobit kl_divergence": {"reconstruction": "none", "activation_observer": "kl_divergence"},
    "isobit mse": {"reconstruction": "none", "activation_observer": "mse"},
}
RIVALS = ("ort-minmax", "ort-percentile", "ort-entropy", "nncf-onnx", "nncf-openvino")
TARGET = "onnxruntime-x86"
KEYS = ("wall", "to_file", "cpu", "cpu_to_file", "peak_mb", "before_mb", "process_wall", "process_cpu")


def work(options: argparse.Namespace) -> dict[str, float]:
    """Quantize and export in this process, which does nothing else, and measure it."""
    started = time.perf_counter()
    pin(options.core)
    import numpy as np
    import torch
    import torch._dynamo
    import torch.export._trace
    import torch.onnx

    import isobit
    from bench_networks import random_network
    from isobit.recipes import workflow  # noqa: F401  what isobit.quantize imports when it is first asked for

    if options.core is not None:
        torch.set_num_threads(1)
    net = random_network(options.networks[0])
    images = torch.from_numpy(np.load(options.images, allow_pickle=False)[: options.limit])
    before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    model = isobit.quantize(net, list(torch.split(images, options.batch)), target=TARGET, **OURS[options.worker])
    found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "quantize_peak_mb": memory("VmHWM")}
    isobit.export(model, options.out)
    return found | {
        "to_file": time.perf_counter() - wall,
        "cpu_to_file": time.process_time() - cpu,
        "peak_mb": memory("VmHWM"),
        "before_mb": before,
        "process_wall": time.perf_counter() - started,
        "process_cpu": time.process_time(),
    }


def prepare_inputs(network: str, options: argparse.Namespace, folder: Path) -> Path:
    """The random images and the float ONNX file, written once, in a process of their own."""
    code = (
        "import sys, torch, numpy as np; from pathlib import Path; from bench_latency import write_float\n"
        f"x = torch.randn({options.limit}, *{list(options.shape)}, generator=torch.Generator().manual_seed(0))\n"
        f"folder = Path(sys.argv[1]); np.save(folder / 'images.npy', x.numpy()); write_float('{network}', x, folder)"
    )
    _python(code, folder)
    return folder / f"{network}.onnx"


def seconds_of_float_export(network: str, options: argparse.Namespace, folder: Path) -> float:
    """What a rival's user waits for before: torch.onnx.export of the float network, imports not counted."""
    code = (
        f"import sys; from rivals import pin; pin({options.core})\n"
        "import time, torch, torch._dynamo, torch.export._trace, torch.onnx\n"
        "from bench_networks import random_network\n"
        f"net, x = random_network('{network}'), torch.zeros(2, *{options.shape})\n"
        "start = time.perf_counter()\n"
        "torch.onnx.export(net, (x,), sys.argv[1] + '/float.onnx', dynamo=True, external_data=False, verbose=False,"
        " dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))\n"
        "print(); print(time.perf_counter() - start)"
    )
    return float(_python(code, folder).splitlines()[-1])


def _python(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


def one_run(tool: str, network: str, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """A fresh process for one tool; its last line is JSON."""
    print(f"… {tool} on {network}", file=sys.stderr, flush=True)
    out = folder / ("out.xml" if tool == "nncf-openvino" else "out.onnx")
    shared = ["--limit", options.limit, *([] if options.core is None else ["--core", options.core])]
    if tool in OURS:
        batch = ["--batch", options.batch, "--images", folder / "images.npy", "--out", out]
        command = [sys.executable, __file__, "--worker", tool, "--networks", network, *batch, *shared]
    else:
        script = Path(__file__).with_name("rivals.py")
        python = options.rival_python or sys.executable
        command = [python, script, tool, model, folder / "images.npy", out, "--batch", options.rival_batch, *shared]
    started = time.perf_counter()
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool} failed on {network}:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    found["process_wall"] = time.perf_counter() - started
    if tool not in OURS:
        exporting = seconds_of_float_export(network, options, folder)
        found |= {"to_file": found["wall"] + exporting, "cpu_to_file": found["cpu"] + exporting}
    return found


def measure(network: str, tools: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians of interleaved repetitions, one record for each tool."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = prepare_inputs(network, options, folder)
        runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
        for _ in range(options.repeat):
            for tool in tools:
                runs[tool].append(one_run(tool, network, model, folder, options))
    return [
        {"network": network, "tool": tool} | {key: median(run[key] for run in found) for key in KEYS}
        for tool, found in runs.items()
    ]


def missed_bars(records: list[dict[str, Any]]) -> list[str]:
    """Time against the fastest rival, memory against the leanest that keeps histograms, on each network."""
    missed = []
    for network in dict.fromkeys(r["network"] for r in records):
        rows = {r["tool"]: r for r in records if r["network"] == network}
        rivals = [r for tool, r in rows.items() if tool in RIVALS]
        lean = [rows[t]["peak_mb"] for t in ("ort-percentile", "ort-entropy") if t in rows]
        ours = rows.get("isobit min_max")
        for key in ("wall", "to_file") if ours and rivals else ():
            best = min(rivals, key=lambda r: r[key])
            if ours[key] > best[key]:
                missed.append(f"{network}: {key} {ours[key]:.1f} s, {best['tool']} {best[key]:.1f} s")
        for tool in OURS:
            if tool in rows and lean and rows[tool]["peak_mb"] > min(lean):
                missed.append(f"{network}: {tool} {rows[tool]['peak_mb']:.0f} MB, a rival {min(lean):.0f} MB")
    return missed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--only", nargs="+", choices=[*OURS, *RIVALS], help="these tools alone")
    parser.add_argument("--limit", type=int, default=64, help="images to calibrate on")
    parser.add_argument("--shape", nargs=3, type=int, default=[3, 224, 224])
    parser.add_argument("--batch", type=int, default=2, help="images at a time in isobit")
    parser.add_argument("--rival-batch", type=int, default=1, help="images at a time in the rivals: their default")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--core", type=int, help="keep to this core; ONNX Runtime's threads do not obey")
    parser.add_argument("--rival-python", type=Path, help="a Python with nncf, openvino and onnxruntime")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=OURS, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(work(options)))
        return 0
    from bench_output import Table, finish

    tools = options.only or [*OURS, *RIVALS]
    left_out = [] if options.rival_python else [t for t in tools if t.startswith("nncf")]
    tools = [t for t in tools if t not in left_out]
    records = [r for network in options.networks for r in measure(network, tools, options)]
    columns = ("network", "tool", "wall s", "from PyTorch to file", "CPU s", "peak MB", "before", "process s")
    keys = ("wall", "to_file", "cpu", "peak_mb", "before_mb", "process_wall")
    rows = tuple(
        (r["network"], r["tool"], *(f"{r[k]:.0f}" if k.endswith("mb") else f"{r[k]:.1f}" for k in keys))
        for r in records
    )
    notes = (
        f"{options.limit} images of {' x '.join(map(str, options.shape))}, median of {options.repeat} runs in turns, "
        "each in a fresh process, with as many threads as it takes by itself.",
        *(f"{tool} was left out: no --rival-python." for tool in left_out),
    )
    table = Table(title="Cost of post-training quantization", columns=columns, rows=rows, notes=notes)
    return finish([table], json_file=options.json, records=records, failed=missed_bars(records))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
