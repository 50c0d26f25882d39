"""Environments of their own for engines whose packages conflict with isobit's: where they lie, how they are made."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from isobit.core.errors import EngineError, OutputError
from isobit.core.files import owned, write_json
from isobit.core.onnx_file import first_line

_PACKAGES = "packages.json"
"""The file in an environment that lists what is installed in it: name and version."""

_TOLD = ("Collecting ", "Downloading ", "Installing ", "Successfully ")
"""How the lines of pip's output begin that are worth showing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """A virtual environment for one engine or several. `package` is the one whose version counts.

    `requirements` are pip's. `torch` is the requirement of PyTorch where it is needed: installed first, since pip may
    otherwise choose a build with gigabytes of CUDA; ISOBIT_TORCH_INDEX names the index of another build, such as
    https://download.pytorch.org/whl/cpu. `platforms` are those with packages (how `sysconfig.get_platform()` begins),
    all where empty; `commands` have to be on the machine, one of the alternatives of each; `pythons` are the first and
    the last version of Python that it has packages for. `megabytes` is what it needs on the disk. `bare` are
    requirements that are installed without what they ask for, where that is much and not needed here.
    """

    name: str
    package: str
    requirements: tuple[str, ...]
    megabytes: int
    torch: str = ""
    bare: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    pythons: tuple[tuple[int, int], tuple[int, int]] = ((3, 11), (3, 99))

    @property
    def folder(self) -> Path:
        """Where it lies: other requirements or another Python make another folder."""
        python = f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"
        told = json.dumps([self.requirements, self.torch, *self.bare, python, sysconfig.get_platform()])
        return home() / f"{self.name}-{sha256(told.encode()).hexdigest()[:8]}"

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    def installed(self) -> bool:
        """Whether it is there, whole."""
        return (self.folder / _PACKAGES).is_file()

    def version(self) -> str:
        """`name version` of its package. Raises EngineError where it is damaged."""
        try:
            packages = json.loads((self.folder / _PACKAGES).read_text(encoding="utf-8"))
            return f"{self.package} {packages[self.package]}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"the environment {self.folder} is damaged: delete the folder and install again"
            ) from error

    def unavailable(self) -> str:
        """Why this machine cannot have it; empty where it can."""
        here, python = sysconfig.get_platform(), sys.version_info[:2]
        if self.platforms and not here.startswith(self.platforms):
            return f"{self.package} has no package for {here}, only for {', '.join(self.platforms)}"
        low, high = self.pythons
        if not low <= python <= high:
            return (
                f"{self.package} has packages for Python {low[0]}.{low[1]} to {high[0]}.{high[1]}, and this is "
                f"{platform.python_version()}"
            )
        for alternatives in self.commands:
            if not any(shutil.which(command) for command in alternatives):
                return f"{self.package} needs {' or '.join(alternatives)}, which is not on this machine"
        return ""


def home() -> Path:
    """The folder of all environments: ISOBIT_ENGINES, or isobit/engines in the user's cache folder."""
    if chosen := os.environ.get("ISOBIT_ENGINES"):
        return Path(chosen).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(cache) if cache else Path.home() / ".cache") / "isobit" / "engines"


def install(environment: Environment, *, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Make an environment, or find that it is there already; its folder. `tell` gets a line for each step.

    It is made under another name and renamed once it is whole: interrupted, it leaves nothing. Raises EngineError
    where this machine cannot have it or pip fails, OutputError where it cannot be written.
    """
    if environment.installed():
        return environment.folder
    if reason := environment.unavailable():
        raise EngineError(reason)
    with owned(home() / ".installing" / environment.folder.name) as place:
        for left in place.iterdir():  # of one that was killed
            shutil.rmtree(left, ignore_errors=True)
        _check_room(environment, place)
        part = Path(tempfile.mkdtemp(dir=place))
        try:
            _fill(environment, part, tell)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(environment.folder)  # a damaged one
            part.rename(environment.folder)
        except OSError as error:
            raise OutputError(f"cannot write {environment.folder}: {first_line(error)}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return environment.folder


def remove(environment: Environment) -> None:
    """Delete an environment that is there."""
    shutil.rmtree(environment.folder, ignore_errors=True)


def _fill(environment: Environment, part: Path, tell: Callable[[str], None]) -> None:
    """Python, then torch, then the rest, then the list of what is there."""
    tell("making a virtual environment")
    _run(environment, [sys.executable, "-m", "venv", str(part)], tell)
    python = str(part / environment.python.relative_to(environment.folder))
    # Packages as wheels alone: to compile one takes tools and hours that nobody asked for.
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--progress-bar", "off"]
    pip += ["--only-binary", ":all:"]
    if environment.torch:
        index = os.environ.get("ISOBIT_TORCH_INDEX", "")
        _run(environment, [*pip, environment.torch, *(["--index-url", index] if index else [])], tell)
    _run(environment, [*pip, *([environment.torch] if environment.torch else []), *environment.requirements], tell)
    if environment.bare:
        _run(environment, [*pip, "--no-deps", *environment.bare], tell)
    listed = _run(environment, [python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"], None)
    packages = {str(p["name"]): str(p["version"]) for p in json.loads(listed)}
    write_json(part / _PACKAGES, packages)


def _run(environment: Environment, command: Sequence[str], tell: Callable[[str], None] | None) -> str:
    """Run a command to its end and return what it printed. Raises EngineError with the line that says what failed."""
    kept: deque[str] = deque(maxlen=10_000)
    settings = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    errors = subprocess.DEVNULL if tell is None else subprocess.STDOUT
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace", env=settings
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                kept.append(line.rstrip())
                if tell is not None and line.strip().startswith(_TOLD):
                    tell(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = next((line for line in kept if line.startswith("ERROR:")), kept[-1] if kept else "it said nothing")
        raise EngineError(
            f"{environment.name} cannot be installed ({' '.join(command[1:4])}): {said.removeprefix('ERROR:').strip()}"
        )
    return "\n".join(kept)


def _check_room(environment: Environment, place: Path) -> None:
    free = shutil.disk_usage(place).free >> 20
    if free < environment.megabytes:
        raise OutputError(
            f"{environment.name} needs {environment.megabytes:,} MB and {home()} has {free:,} MB left: free some "
            "space, or set ISOBIT_ENGINES to another folder"
        )
