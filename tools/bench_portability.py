"""One file of each network on every engine that is installed, and on emulated machines: exact, and in agreement?

    python tools/bench_portability.py [--networks cifar10_resnet20 …] [--targets onnxruntime-x86] [--images 100]
    python tools/bench_portability.py --exact [...]
    python tools/bench_portability.py --own --targets openvino-cpu litert executorch-xnnpack qnn-htp
    python tools/bench_portability.py --machines FOLDER

Default options, pretrained networks, and a BERT with random weights on random tokens. FOLDER holds the emulated
machines of `tools/isa.py` (x86 before VNNI, Arm64). ms: one image, one thread, the median of 20 runs, not in turns
with the others. Exit code 1: ONNX Runtime or LiteRT is not exact, or top-1 differs by more than one image in a
thousand.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isobit
from bench_output import Table, finish, say
from bench_reconstruction import setup
from isobit.benchmark.models import MODELS
from isobit.core.portability import EngineRow, Portability
from isobit.core.records import to_json
from isobit.engines import ENGINES, Engine
from isobit.recipes.portability import RUNS, portability
from isobit.targets import TARGETS
from machines import MACHINES, Emulated, set_up

NETWORKS = ("cifar10_resnet20", "cifar10_resnet56", "mobilenet_v2_folded", "squeezenet1_1", "vit_digits", "bert_tiny")
EXACT = ("onnxruntime", "litert")
"""Engines, by the beginning of their names, that have to be exact where no op runs in float."""
COLUMNS = ("network", "target", "engine", "instructions", "verdict", "first difference", "right", "as on the first",
           "ms", "in float")  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--targets", nargs="+", default=["onnxruntime-x86"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--engines", nargs="+", choices=sorted(ENGINES), help="default: all that are installed")
    parser.add_argument("--own", action="store_true", help="each file on its target's own engine alone")
    parser.add_argument("--machines", type=Path)
    parser.add_argument("--exact", action="store_true", help="exact by construction")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    wanted = options.engines or [name for name in ENGINES if name != "fake"]
    engines: dict[str, Engine] = {n: make() for n, make in ENGINES.items() if n in wanted and not make().missing()}
    if options.machines is not None:
        set_up(options.machines)
        emulated = {e.name: e for e in (Emulated(machine=name, folder=options.machines) for name in MACHINES)}
        engines = {"onnxruntime": engines["onnxruntime"], **emulated}
    rows: list[tuple[str, ...]] = []
    missed: list[str] = []
    records = []
    for name in options.networks:
        net, data, test = network(name, options.images)
        for target in options.targets:
            say(f"{name}, {target}")
            with tempfile.TemporaryDirectory() as folder:
                path = isobit.export(
                    isobit.quantize(net, data, target=target, exact=options.exact), Path(folder) / "net.onnx"
                ).path
                runs = 0 if options.machines is not None else RUNS
                own = {n: e for n, e in engines.items() if n == TARGETS[target].own_engine}
                found = portability(path, data=test, engines=own if options.own else engines, runs=runs)
            rows += [row_of(name, target, row) for row in found.rows]
            missed += [f"{name}, {target}: {what}" for what in missing(found)]
            records.append({"network": name, "target": target, "portability": to_json(found)})
    title = f"One file on every engine, {options.images} images"
    return finish(
        [Table(title=title, columns=COLUMNS, rows=tuple(rows))], json_file=options.json, records=records, failed=missed
    )


def network(name: str, images: int) -> tuple[nn.Module, list[Any], list[tuple[Any, ...]]]:
    """A network, its calibration data and at most so many labelled inputs."""
    if name == "bert_tiny":
        torch.manual_seed(0)
        net = MODELS[name]().eval()
        words = net.words.num_embeddings  # type: ignore[union-attr]
        ids = torch.randint(0, int(words), (images + 64, 16))
        mask = (torch.arange(16)[None] < torch.randint(4, 17, (images + 64, 1))).long()
        return net, [((ids[:64], mask[:64]),)], [((ids[64:], mask[64:]),)]
    found = setup(name)
    few: tuple[Tensor, ...] = tuple(torch.cat(parts)[:images] for parts in zip(*found.test, strict=True))
    return found.net, found.data, [tuple(x[i : i + 25] for x in few) for i in range(0, len(few[0]), 25)]


def row_of(network: str, target: str, row: EngineRow) -> tuple[str, ...]:
    c = row.certificate
    if c is None:
        return (network, target, row.engine, "", "refused", row.refused, "", "", "", "")
    right = next((f"{a.right} of {a.total}" for a in c.accuracy if a.execution == c.engine), "")
    share = f"{row.equal:,} of {row.total:,}" + (f", at most {row.largest:.3g}" if row.largest else "")
    milliseconds = "" if row.milliseconds is None else f"{row.milliseconds:.2f}"
    first = row.first or ("" if c.verdict == "exact" else c.cause[:80])
    islands = str(len(c.float_islands)) if c.float_islands else "none"
    return (
        network, target, row.engine, c.instruction_set, c.verdict, first, right, share, milliseconds, islands
    )  # fmt: skip


def missing(found: Portability) -> list[str]:
    """What misses its bar."""
    what = []
    for row in found.rows:
        c = row.certificate
        if c is None:
            what.append(f"{row.engine} refuses the file: {row.refused}")
        elif row.engine.startswith(EXACT) and c.verdict != "exact" and not c.float_islands:
            what.append(f"{row.engine} is {c.verdict}: {row.first or c.cause}")
        elif c.verdict == "broken":
            what.append(f"{row.engine} is broken: {row.first or c.cause}")
    if found.spread is not None and found.spread > 0.1:
        what.append(f"top-1 differs by {found.spread:.2f} points")
    return what


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
