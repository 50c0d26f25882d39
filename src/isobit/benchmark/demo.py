"""The demo: train a small network on digits, quantize it for two targets at two widths, and prove each file."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from isobit.analysis.accuracy import accuracy
from isobit.benchmark.data import Dataset, read_digits
from isobit.benchmark.digits_training import train_digits
from isobit.core.errors import MissingExtraError, OutputError
from isobit.core.progress import Progress, silent
from isobit.core.records import Accuracy, Certificate, Latency, RunRecord
from isobit.engines import ENGINES, Engine
from isobit.engines.latency import latency
from isobit.export import export_float
from isobit.graph.capture import capture
from isobit.recipes.run import record_run
from isobit.recipes.table import look_up
from isobit.recipes.workflow import export, quantize
from isobit.report import check_report, write_report
from isobit.targets import TARGETS
from isobit.verify import verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """Settings of the demo. Empty `targets` means the two that tell most with the engines that are installed.

    Everything computes with `threads` threads: sums in another order would give other weights.
    """

    seed: int = 0
    epochs: int = 20
    targets: tuple[str, ...] = ()
    bits: tuple[int, ...] = (8, 4)
    samples: int = 256
    batch: int = 50
    threads: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoRun:
    """One target at one width: its file, its certificate, and its time on the engine beside that of float."""

    target: str
    bits: int
    path: Path
    bytes: int
    certificate: Certificate
    latency: Latency
    record: RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demo found, and where its files lie."""

    folder: Path
    float_accuracy: Accuracy
    float_path: Path
    float_bytes: int
    runs: tuple[DemoRun, ...]
    report: Path
    seconds: float


def run_demo(folder: str | Path, settings: Demo | None = None, *, progress: Progress = silent) -> DemoResult:
    """Train, quantize, export, verify, measure, and write every file and `report.html` into `folder`.

    The same seed gives the same integers on the same machine. Raises MissingExtraError without scikit-learn, Jinja2
    or an engine, OutputError where `folder` cannot be written; all before the training.
    """
    started = time.monotonic()
    settings = settings or Demo()
    engines = {name: engine_of(name) for name in settings.targets or default_targets()}
    folder = usable_folder(Path(folder))
    test = read_digits("test", batch_size=settings.batch)
    with _threads(settings.threads):
        net, _ = train_digits(settings.seed, epochs=settings.epochs, progress=progress)
        right, total = accuracy(net, test)
        demo = _Demo(
            settings=settings,
            net=net,
            test=test,
            float_accuracy=Accuracy(execution="float", right=right, total=total),
            float_path=folder / "float.onnx",
            progress=progress,
        )
        demo.export_float()
        runs = tuple(demo.run(name, bits, engine) for name, engine in engines.items() for bits in settings.bits)
        progress("writing the report", 0, None)
        report = write_report([run.record for run in runs], folder / "report.html")
    return DemoResult(
        folder=folder,
        float_accuracy=demo.float_accuracy,
        float_path=demo.float_path,
        float_bytes=demo.float_path.stat().st_size,
        runs=runs,
        report=report,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Demo:
    """What all runs of the demo share."""

    settings: Demo
    net: nn.Module
    test: Dataset
    float_accuracy: Accuracy
    float_path: Path
    progress: Progress

    def export_float(self) -> None:
        """The baseline of size and speed."""
        self.progress("exporting the float network", 0, None)
        example = next(iter(self.test))[0][:2]
        export_float(capture(self.net, example), self.float_path, example=(example,))

    def run(self, target: str, bits: int, engine: Engine) -> DemoRun:
        """Quantize, export, time, verify, analyse."""
        started = time.monotonic()
        name = f"{target} at {bits} bits"
        self.progress(f"quantizing for {name}", 0, None)
        train = read_digits("train", batch_size=self.settings.batch).take(self.settings.samples)
        model = quantize(self.net, train, target=target, bits=bits, seed=self.settings.seed)
        path = self.float_path.parent / f"{target}-{bits}bit.onnx"
        self.progress(f"exporting for {name}", 0, None)
        export(model, path)
        self.progress(f"timing {name}", 0, None)
        timed = self.timed(path, engine)
        certificate = verify(
            path, model, self.test, engine=engine, latency=(timed,), progress=self.named(f"verifying {name}")
        )
        record = record_run(
            model,
            net=self.net,
            data=train.take(100),
            certificates=(certificate,),
            accuracy=(self.float_accuracy,),
            title=f"Digits on {target}, {bits} bits",
            samples=16,
            seconds=time.monotonic() - started,
            command="isobit demo",
            progress=self.named(f"analysing {name}"),
        )
        return DemoRun(
            target=target,
            bits=bits,
            path=path,
            bytes=path.stat().st_size,
            certificate=certificate,
            latency=timed,
            record=record,
        )

    def timed(self, path: Path, engine: Engine) -> Latency:
        """A quantized file against the float file, in turns, on one batch."""
        x = next(iter(self.test))[0].numpy()
        return latency(engine.load(self.float_path), engine.load(path), [x], engine=engine.name)

    def named(self, what: str) -> Progress:
        """Progress under another name."""
        return lambda _, done, total: self.progress(what, done, total)


def default_targets() -> tuple[str, str]:
    """The two engines against each other; TensorRT's formats on the one that is there where OpenVINO is not."""
    return ("onnxruntime-x86", "openvino-cpu" if not ENGINES["openvino"]().missing() else "tensorrt")


def engine_of(target: str) -> Engine:
    """The target's first engine that is installed. Raises MissingExtraError, UnknownNameError."""
    engines = [look_up("engine", ENGINES, name)() for name in look_up("target", TARGETS, target).engines]
    found = next((engine for engine in engines if not engine.missing()), None)
    if found is None:
        raise MissingExtraError(f"an engine for {target}", "demo")
    return found


def usable_folder(folder: Path) -> Path:
    """Create the folder; raise OutputError now where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the folder {folder}: {error.strerror}. Choose another one with -o") from error
    check_report(folder / "report.html")
    return folder


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
