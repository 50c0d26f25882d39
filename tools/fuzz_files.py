"""Two hundred broken and hostile files, each verified in a process of its own: what becomes of them.

    python tools/fuzz_files.py [--files 200] [--every 1] [--engines onnxruntime openvino litert] [--json OUT]
        [--keep FOLDER]

The files are real exports (the demo's digits network and a small residual one with concat and pools), changed by
the mutations of `mutation_table.py`, for LiteRT those of `litert_mutations.py`, with fixed seeds. Each process has
a limit of time and of memory; an audit hook stops the opening of any file that is neither the process's own nor in
the folder of the network, and inotify watches the folder that the hostile paths lead to, for what native code
opens. Exit code 1: a file was neither refused with one line of text nor verified. Linux only.
"""

import argparse
import ctypes
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from litert_mutations import write_litert
from mutation_table import MUTATIONS
from mutations import OUTSIDE, Mutation, write

MEMORY = 6 << 30
"""Bytes that a process may add to what it has at its start."""
SECONDS = 60
OUTCOMES = ("refused", "verified")
_PROGRESS = re.compile(r", \d.* (so far|left)$")


class Branches(nn.Module):
    """Convolutions, a residual, two branches joined, both kinds of pools, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 3, padding=1, dilation=1)
        self.linear = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(torch.relu(x + self.conv(x)), 2)
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        return self.linear(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def write_bases(folder: Path, formats: set[str]) -> None:
    """The files that are mutated; they are whole."""
    import isobit
    from isobit.benchmark.models.digits import DigitsResNet

    for name, kind, size in (("digits", DigitsResNet, (1, 8, 8)), ("branches", Branches, (3, 12, 12))):
        torch.manual_seed(0)
        net, data = kind().eval(), torch.rand(32, *size)
        model = isobit.quantize(net, [data], target="onnxruntime-x86")
        isobit.export(model, folder / f"{name}.onnx")
        if "litert" in formats:
            isobit.export(model, folder / f"{name}.tflite")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one file on one engine, and the text or verdict that says so."""

    number: int
    kind: str
    name: str
    engine: str
    outcome: str
    text: str
    seconds: float
    megabytes: int


class Watched:
    """What any process opens in a folder, from the kernel's own list (inotify)."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        opened, read = 0x20, 0x01
        if self._handle < 0 or self._libc.inotify_add_watch(self._handle, bytes(folder), opened | read) < 0:
            raise SystemExit(f"inotify: {os.strerror(ctypes.get_errno())}")

    def events(self) -> int:
        """How many bytes of events have come since the last call."""
        count = 0
        while select.select([self._handle], [], [], 0)[0]:
            count += len(os.read(self._handle, 65536))
        return count


def in_child(work: Callable[[], int], *, seconds: float, output: Path) -> tuple[int | str, float, int]:
    """Run `work` in a fork: its exit code, or the name of what killed it; seconds; peak megabytes."""
    started, pid = time.perf_counter(), os.fork()
    if pid == 0:
        code = 99
        try:
            for number in (1, 2):
                os.dup2(os.open(output.with_suffix(f".{number}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            code = work()
        finally:
            os._exit(code)
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.perf_counter() - started > seconds:
            os.kill(pid, signal.SIGKILL)
            _, _, usage = os.wait4(pid, 0)
            return "hung", time.perf_counter() - started, usage.ru_maxrss // 1024
        time.sleep(0.005)
    spent = time.perf_counter() - started
    if os.WIFSIGNALED(status):
        return f"crashed: {signal.Signals(os.WTERMSIG(status)).name}", spent, usage.ru_maxrss // 1024
    return os.waitstatus_to_exitcode(status), spent, usage.ru_maxrss // 1024


def guard(allowed: list[str]) -> None:
    """Limit memory, and report on stderr what is opened outside the allowed folders."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(tuple(allowed)):
                os.write(2, f"OUTSIDE {path}\n".encode())

    sys.addaudithook(hook)


def command(path: Path, engine: str, allowed: list[str]) -> Callable[[], int]:
    """`isobit verify` as a user types it."""

    def work() -> int:
        from isobit.cli.app import app

        guard([*allowed, str(path.parent.resolve()) + os.sep])
        try:
            app(["verify", str(path), "--engine", engine, "--json"])
        except SystemExit as done:
            sys.stdout.flush()
            sys.stderr.flush()
            return done.code if isinstance(done.code, int) else 0
        return 98

    return work


def judge(code: int | str, output: Path, *, opened: int) -> tuple[str, str]:
    """The outcome, and the text that says why."""
    out, errors = (output.with_suffix(f".{n}").read_text(errors="replace") for n in (1, 2))
    lines = [line for line in errors.splitlines() if line.strip() and not _PROGRESS.search(line)]
    text = lines[-1][:200] if lines else ""
    if opened or any(line.startswith("OUTSIDE") for line in lines):
        return "read outside", text
    if isinstance(code, str):
        return code, text
    if 2 <= code <= 8 and len(lines) == 1 and lines[0].startswith("error: ") and not out:
        return "refused", text.removeprefix("error: ")
    if code in (0, 9) and not lines and out.lstrip().startswith("{"):
        return "verified", str(json.loads(out)["certificate"]["verdict"])
    return f"fault (exit code {code}, {len(lines)} lines)", text


def cases(count: int) -> list[tuple[int, Mutation, str]]:
    """Every mutation once, then the bytes and those with a choice again under other seeds."""
    rest = [m for m in MUTATIONS if m.kind in ("bytes", "graph", "attributes", "quantizers")]
    chosen = [*MUTATIONS]
    while len(chosen) < count:
        chosen.append(rest[(len(chosen) - len(MUTATIONS)) % len(rest)])
    names = ("branches", "digits")
    return [(i, m, names[(i + i // len(rest)) % 2] if m.name[-6:] != "a pool" else "branches")
            for i, m in enumerate(chosen[:count])]  # fmt: skip


def fuzz(options: argparse.Namespace, folder: Path) -> list[Outcome]:
    """All cases on all engines."""
    import isobit.cli.data
    import isobit.cli.requirement
    import isobit.cli.verifying
    import isobit.recipes.workflow
    from isobit.engines import ENGINES

    outside, scratch = folder / OUTSIDE, folder / "scratch"
    for place in (outside, scratch, folder / "cases"):
        place.mkdir()
    (outside / "secret.bin").write_bytes(bytes(1 << 20))
    (folder / "cases" / OUTSIDE).symlink_to(outside, target_is_directory=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    formats = {ENGINES[engine]().format for engine in options.engines}
    code, *_ = in_child(lambda: write_bases(folder, formats) or 0, seconds=600, output=folder / "bases")
    if code != 0:
        raise SystemExit(f"no files to change: {code}\n{(folder / 'bases.2').read_text()[-2000:]}")
    for engine in options.engines:
        ENGINES[engine]().version()
    homes = {sys.prefix, sys.base_prefix, str(Path(isobit.__file__).parent), str(scratch)}
    allowed = [os.path.realpath(home) + os.sep for home in homes] + ["/proc/", "/sys/", "/dev/null", "/usr/", "/etc/ld"]
    watched, found = Watched(outside), []
    for number, mutation, base in cases(options.files)[:: options.every]:
        place = folder / "cases" / f"{number:03}"
        path = write(mutation, (folder / f"{base}.onnx").read_bytes(), number, place)
        for engine in options.engines:
            kind, name, file = mutation.kind, mutation.name, path
            if ENGINES[engine]().format == "litert":
                kind, (name, file) = "LiteRT", write_litert(folder / f"{base}.tflite", number, place)
            watched.events()
            output = folder / "output"
            code, seconds, size = in_child(command(file, engine, allowed), seconds=SECONDS, output=output)
            outcome, text = judge(code, output, opened=watched.events())
            found.append(
                Outcome(
                    number=number, kind=kind, name=name, engine=engine, outcome=outcome, text=text,
                    seconds=seconds, megabytes=size,
                )
            )  # fmt: skip
            if options.verbose or outcome not in OUTCOMES:
                print(f"{number:03} {engine} {kind}, {name}: {outcome}: {text}", flush=True)
    return found


def table(found: list[Outcome]) -> list[str]:
    """A row for each kind of mutation and engine."""
    lines = [f"{'mutations of':20} {'engine':12} {'files':>5} {'refused':>7} {'verified':>8} {'failed':>6}"]
    for kind, engine in dict.fromkeys((f.kind, f.engine) for f in found):
        counts = Counter(
            f.outcome if f.outcome in OUTCOMES else "failed" for f in found if (f.kind, f.engine) == (kind, engine)
        )
        numbers = f"{sum(counts.values()):5} {counts['refused']:7} {counts['verified']:8} {counts['failed']:6}"
        lines.append(f"{kind:20} {engine:12} {numbers}")
    counts = Counter(f.outcome if f.outcome in OUTCOMES else "failed" for f in found)
    lines.append(f"{'all':33} {len(found):5} {counts['refused']:7} {counts['verified']:8} {counts['failed']:6}")
    slow, large = max(found, key=lambda f: f.seconds), max(found, key=lambda f: f.megabytes)
    lines.append(f"slowest: {slow.seconds:.1f} s ({slow.name}); most memory: {large.megabytes:,} MB ({large.name})")
    return lines


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--every", type=int, default=1, help="every n-th of them")
    parser.add_argument("--engines", nargs="+", default=["onnxruntime"])
    parser.add_argument("--keep", type=Path, help="a new folder in which the files stay")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print what every file gave")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        found = fuzz(options, folder)
        print("\n".join(table(found)))
    if options.json:
        options.json.write_text(json.dumps({"records": [asdict(f) for f in found]}, indent=1) + "\n")
    return int(any(f.outcome not in OUTCOMES for f in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
