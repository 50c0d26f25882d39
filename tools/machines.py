"""Other machines under emulation: the real ONNX Runtime on a processor with AVX2 and no VNNI, and on Arm64.

`set_up(folder)` downloads qemu-user and an Arm64 Python from Debian, and wheels for it from PyPI: a minute, 500 MB,
no root. `Emulated` is then an engine like any other, for `isobit.verify`: each call of `run` starts a process.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import final

import numpy as np
import onnx

from isobit.core.arithmetic import FLOAT32_NEON, FLOAT32_PAIRS, Arithmetic
from isobit.core.errors import EngineError
from isobit.core.onnx_file import graph_inputs
from isobit.core.records import Kernel
from isobit.engines.base import check_inputs, expose_tensors, read_model

DEBIAN, SUITE, PYTHON = "http://deb.debian.org/debian", "trixie", "3.13"
"""qemu 7.2, of the release before, crashes when ONNX Runtime 1.31 for Arm64 is imported; 10.0 does not."""

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARM_PACKAGES = ("python3", "libgomp1", "libstdc++6")
RUNNER = Path(__file__).with_name("machine_run.py")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What qemu emulates, and the instructions that decide integer arithmetic there."""

    qemu: str
    cpu: str
    instructions: str
    arithmetic: Arithmetic


MACHINES = {
    "avx2": Machine(qemu="qemu-x86_64", cpu="Haswell", instructions="AVX2", arithmetic=FLOAT32_PAIRS),
    "arm64": Machine(
        qemu="qemu-aarch64", cpu="cortex-a76", instructions="NEON, dot product", arithmetic=FLOAT32_NEON
    ),
    "arm64-i8mm": Machine(
        qemu="qemu-aarch64", cpu="max", instructions="NEON, dot product, I8MM", arithmetic=FLOAT32_NEON
    ),
}  # fmt: skip
"""qemu knows no AVX-512: AVX512 without VNNI cannot be had this way."""


def set_up(folder: Path) -> None:
    """Fill `folder`, unless it is filled. Raises EngineError where a tool is missing or a download fails."""
    folder = folder.absolute()
    stamp, wanted = folder / "ready", f"{SUITE}, onnxruntime {version('onnxruntime')}, numpy {version('numpy')}\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if sys.platform != "linux" or not shutil.which("apt-get") or not shutil.which("dpkg") or not KEYS.is_file():
        raise EngineError(f"the machines come from Debian: this needs Linux, apt-get, dpkg and {KEYS}")
    stamp.unlink(missing_ok=True)
    (qemu,) = _packages(folder, "amd64", ("qemu-user",), dependencies=False)
    _unpack(qemu, folder / "host")
    for package in _packages(folder, "arm64", ARM_PACKAGES, dependencies=True):
        _unpack(package, folder / "arm64")
    if not (folder / "arm64/lib").exists():  # Debian's base system has it as a link, and no package owns it
        (folder / "arm64/lib").symlink_to("usr/lib")
    wheels, site = folder / "wheels", folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    platforms = [f"--platform=manylinux_{v}_aarch64" for v in ("2_28", "2_27", "2_17")] + [
        "--platform=manylinux2014_aarch64"
    ]
    names = [f"{name}=={version(name)}" for name in ("onnxruntime", "numpy")]
    _call(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--implementation=cp",
          f"--python-version={PYTHON}", *platforms, "--dest", str(wheels), *names)  # fmt: skip
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for rest in ("debs", "wheels"):
        shutil.rmtree(folder / rest)
    stamp.write_text(wanted)


def _packages(folder: Path, architecture: str, names: Sequence[str], *, dependencies: bool) -> list[Path]:
    """Download Debian packages into `folder`; nothing is installed, and the system's own lists are not touched."""
    state, debs = folder / "apt" / architecture, folder / "debs" / architecture
    for path in (state / "lists/partial", debs / "partial"):
        path.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYS}] {DEBIAN} {SUITE} main\n")
    settings = {
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Sandbox::User": "",
        "Debug::NoLocking": "1", "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": state / "lists", "Dir::State::status": state / "status", "Dir::Cache": state,
        "Dir::Cache::archives": debs,
    }  # fmt: skip
    options = ["--quiet=2", *(f"--option={key}={value}" for key, value in settings.items())]
    _call("apt-get", *options, "update")
    if dependencies:
        _call("apt-get", *options, "--yes", "--no-install-recommends", "--download-only", "install", *names)
    else:
        _call("apt-get", *options, "download", *names, cwd=debs)
    return sorted(debs.glob("*.deb"))


def _unpack(package: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _call("dpkg", "--extract", str(package), str(folder))


def _call(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-500:]}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Emulated:
    """ONNX Runtime on an emulated machine, as `isobit.engines.Engine` has it."""

    machine: str
    folder: Path

    @property
    def name(self) -> str:
        """The machine's."""
        return f"onnxruntime-{self.machine}"

    @property
    def format(self) -> str:
        """See Engine."""
        return "onnx"

    def missing(self) -> str:
        """See Engine."""
        return "" if (self.folder / "ready").is_file() else f"set the machines up: python tools/isa.py {self.folder}"

    def version(self) -> str:
        """The same as the installed one."""
        return f"onnxruntime {version('onnxruntime')} under qemu"

    def instruction_set(self) -> str:
        """See Engine."""
        return MACHINES[self.machine].instructions

    @property
    def arithmetic(self) -> Arithmetic:
        """See Engine."""
        return MACHINES[self.machine].arithmetic

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> "EmulatedSession":
        """See Engine. The file is loaded anew by each run."""
        original = read_model(path)
        outputs = (*(o.name for o in original.graph.output), *expose)
        return EmulatedSession(self, expose_tensors(original, expose), outputs)

    def call(self, *arguments: str) -> None:
        """Run the runner there."""
        machine, folder = MACHINES[self.machine], self.folder.absolute()
        arm = machine.qemu == "qemu-aarch64"
        site = folder / "site" if arm else Path(onnx.__file__).parents[1]
        command = [str(folder / "host/usr/bin" / machine.qemu), "-cpu", machine.cpu]
        if arm:
            command += ["-L", str(folder / "arm64"), str(folder / "arm64/usr/bin" / f"python{PYTHON}")]
        else:
            command.append(str(Path(sys.executable).resolve()))
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(site)}
        done = subprocess.run(
            [*command, str(RUNNER), *arguments], env={"PATH": os.environ["PATH"], **threads}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise EngineError(f"{self.name} failed: {done.stderr.strip()[-500:]}")


@final
class EmulatedSession:
    """A file on an emulated machine."""

    def __init__(self, engine: Emulated, model: onnx.ModelProto, outputs: tuple[str, ...]) -> None:
        self._engine, self._model, self._outputs = engine, model, outputs
        self._kernels: tuple[Kernel, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Session."""
        return self._outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Session."""
        check_inputs(self._model, inputs)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            onnx.save(self._model, folder / "net.onnx")
            names = [value.name for value in graph_inputs(self._model)]
            np.savez(folder / "inputs.npz", *inputs)
            (folder / "names.txt").write_text("\n".join([" ".join(names), " ".join(self._outputs)]))
            self._engine.call(name)
            nodes = onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node
            counts = Counter(node.op_type for node in nodes)
            self._kernels = tuple(Kernel(name=op, precision="", count=n) for op, n in sorted(counts.items()))
            with np.load(folder / "outputs.npz") as found:
                return [found[f"arr_{i}"] for i in range(len(self._outputs))]

    def kernels(self) -> tuple[Kernel, ...]:
        """See Session; known after a run."""
        return self._kernels

    def float_islands(self) -> tuple[str, ...]:
        """Not looked for here."""
        return ()
