"""Every target at W8A8 on trained networks: images right in simulation, reference and engines, and what agrees.

    python tools/bench_targets.py [--network cifar10_resnet20] [--targets ...]    table 1: all targets, their engines
    python tools/bench_targets.py --exact [--networks ...]                        table 2: ONNX Runtime, 1,000 inputs

Table 1 calibrates on 256 training images and verifies on the test images, on ONNX Runtime and OpenVINO, and targets
whose files are no ONNX on their own engines. Table 2 certifies the target
onnxruntime-x86 on ONNX Runtime: all outputs of 1,000 inputs have to be equal to those of the integer reference. The
ImageNet sample has 500 images: a network of it is calibrated on every 10th, and the other 450 are filled up with
random crops and flips. Exit code 1: a bar was missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import isobit
from bench_output import Table, finish, say
from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data import Dataset, read_digits
from isobit.benchmark.digits_training import train_digits
from isobit.benchmark.pretrained import pretrained
from isobit.core.records import Certificate, Comparison, to_json
from isobit.core.scheme import PowerOfTwo
from isobit.engines import ENGINES, Engine
from isobit.targets import TARGETS
from isobit.verify import verify

BARS = {"cifar10_resnet20": (912, 905)}
"""Images right of 1,000 that a target with float scales, and one with powers of two, has to reach."""
EXACT = ("cifar10_resnet20", "cifar10_resnet56", "mobilenet_v2_folded", "squeezenet1_1")
SAMPLES = 1000
ONNX_ENGINES = ("onnxruntime", "openvino")
SUFFIXES = {"litert": "tflite"}
"""Of formats that do not go by their name."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained network, what it is calibrated on and what it is verified on."""

    name: str
    net: nn.Module
    calibration: Dataset
    evaluation: Dataset


def subject(name: str, limit: int | None) -> Subject:
    """A row of `PRETRAINED`, or `digits`, which trains in seconds."""
    if name == "digits":
        train, test = read_digits("train"), read_digits("test")
        found = Subject(name=name, net=train_digits(epochs=5)[0], calibration=train.take(256), evaluation=test)
    else:
        row = pretrained(name)
        data = row.evaluation()
        calibration = row.calibration().take(256)
        if row.data == "imagenet_sample":
            calibration, data = data.every(10), data.without(data.every(10))
        found = Subject(name=name, net=row.load(), calibration=calibration, evaluation=data)
    if limit is None:
        return found
    return Subject(name=name, net=found.net, calibration=found.calibration, evaluation=found.evaluation.take(limit))


def crops_and_flips(data: Dataset, count: int, *, seed: int = 0) -> Iterator[tuple[Tensor]]:
    """`count` variants of the images, without labels: shifted by up to an eighth, half of them mirrored."""
    generator = torch.Generator().manual_seed(seed)
    while count > 0:
        for x, *_ in data:
            reach = x.shape[-1] // 8
            padded = torch.nn.functional.pad(x, (reach, reach, reach, reach), mode="reflect")
            y = torch.stack([_variant(image, x.shape[-1], 2 * reach, generator) for image in padded])[:count]
            if not len(y):
                return
            yield (y,)
            count -= len(y)


def _variant(image: Tensor, size: int, reach: int, generator: torch.Generator) -> Tensor:
    top, left, mirror = (int(torch.randint(high, (1,), generator=generator)) for high in (reach + 1, reach + 1, 2))
    found = image[:, top : top + size, left : left + size]
    return found.flip(-1) if mirror else found


def certify(of: Subject, target: str, engines: list[Engine], folder: Path, *, samples: int = 0) -> list[Certificate]:
    """Quantize, export in each engine's format and verify; with `samples`, variants fill the evaluation images up."""
    say(f"{of.name} for {target}")
    model = isobit.quantize(of.net, of.calibration.batched(32), target=target)
    formats = {engine.format for engine in engines}
    paths = {
        f: isobit.export(model, folder / f"{of.name}.{target}.{SUFFIXES.get(f, f)}", format=f).path for f in formats
    }
    data: list[tuple[Tensor, ...]] | Dataset = of.evaluation
    if samples > of.evaluation.samples:
        data = [*of.evaluation, *crops_and_flips(of.evaluation, samples - of.evaluation.samples)]
    return [verify(paths[engine.format], model, data, engine=engine) for engine in engines]


def equal(comparison: Comparison) -> str:
    """Outputs equal, of how many, and the largest difference where some differ."""
    share = f"{comparison.equal:,} of {comparison.total:,}"
    return share if comparison.equal == comparison.total else f"{share}, ≤ {comparison.largest:.3g} {comparison.unit}"


def right(certificate: Certificate) -> dict[str, int]:
    return {a.execution: a.right for a in certificate.accuracy}


def target_table(
    of: Subject, targets: list[str], engines: list[str] | None, folder: Path
) -> tuple[Table, list[Certificate]]:
    """A row for each target and execution; the reference is that of the first engine."""
    rows: list[tuple[str, ...]] = []
    found: list[Certificate] = []
    for target in targets:
        profile = TARGETS[target]
        own = ONNX_ENGINES if profile.formats[0] == "onnx" else profile.engines
        certificates = certify(of, target, [ENGINES[name]() for name in engines or own], folder)
        found += certificates
        first = certificates[0]
        against = next(c for c in first.comparisons if (c.left, c.right) == ("simulation", "reference"))
        rows.append((target, "simulation", str(right(first)["simulation"]), equal(against), "", "", ""))
        rows.append((target, "integer reference", str(right(first)["reference"]), "", "", "", ""))
        for c in certificates:
            islands = str(len(c.float_islands))
            rows.append(
                (target, c.engine, str(right(c)[c.engine]), equal(c.comparisons[0]), islands, c.verdict, c.cause)
            )
    total = of.evaluation.samples
    columns = ("target", "execution", "right", "outputs equal to the reference's", "ops in float", "verdict", "cause")
    score, _ = accuracy(of.net, of.evaluation)
    notes = (f"Float: {score} of {total} right. Calibrated on {of.calibration.samples} images, W8A8, min-max ranges.",)
    return Table(title=f"{of.name}: every target", columns=columns, rows=tuple(rows), notes=notes), found


def exact_table(names: list[str], limit: int | None, engine: Engine, folder: Path) -> tuple[Table, list[Certificate]]:
    """A row for each network: the target onnxruntime-x86 on its engine."""
    rows, found = [], []
    for name in names:
        of = subject(name, limit)
        (c,) = certify(of, "onnxruntime-x86", [engine], folder, samples=min(SAMPLES, limit or SAMPLES))
        score, total = accuracy(of.net, of.evaluation)
        reference = f"{right(c)['reference']} of {total} (float {score})"
        inputs = f"{c.samples}" + (f", {c.samples - total} of them crops and flips" if c.samples > total else "")
        rows.append((name, inputs, reference, equal(c.comparisons[0]), equal(c.comparisons[1]), c.verdict, c.cause))
        found.append(c)
    columns = ("network", "inputs", "right", "engine = reference", "simulation = reference", "verdict", "cause")
    return Table(title=f"Certificates on {engine.version()}", columns=columns, rows=tuple(rows)), found


def missed_bars(name: str, certificates: list[Certificate]) -> list[str]:
    """Which targets are below the bar of `BARS`, in any execution."""
    if name not in BARS:
        return []
    floats, powers = BARS[name]
    missed = []
    for c in certificates:
        bar = powers if isinstance(TARGETS[c.target].activation.scale, PowerOfTwo) else floats
        missed += [f"{c.target} {run}: {n} right, the bar is {bar}" for run, n in right(c).items() if n < bar]
    return list(dict.fromkeys(missed))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", action="store_true", help="table 2 instead of table 1")
    parser.add_argument("--network", default="cifar10_resnet20", help="of table 1: a pretrained one, or digits")
    parser.add_argument("--networks", nargs="+", default=list(EXACT), help="of table 2")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="of table 1")
    parser.add_argument("--limit", type=int, help="evaluate on so many images only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.exact:
            table, found = exact_table(options.networks, options.limit, ENGINES["onnxruntime"](), Path(folder))
            missed = [f"{c.file}: {c.verdict}, not exact: {c.cause}" for c in found if c.verdict != "exact"]
        else:
            of = subject(options.network, options.limit)
            table, found = target_table(of, options.targets, options.engines, Path(folder))
            missed = [] if options.limit else missed_bars(options.network, found)
    return finish([table], json_file=options.json, records=[to_json(c) for c in found], failed=missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
