"""Engines in environments of their own, with a worker that needs numpy alone, and everything that can go wrong."""

import gc
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from engines.tiny import tiny, tiny_wheel
from integer.graphs import small_network
from isobit.core.arithmetic import FLOAT32
from isobit.core.errors import EngineError, OutputError
from isobit.core.records import Kernel
from isobit.engines.apart import Apart, ApartSession
from isobit.engines.environment import Environment, home, install
from isobit.engines.latency import interleaved

WORKER = Path(__file__).parent / "fake_worker.py"
X = np.arange(6, dtype=np.float32).reshape(2, 3)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the environment is imitated by a shell script")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_ENGINES", str(tmp_path / "engines"))


def an_environment() -> Environment:
    return Environment(name="doubler", package="doubler", requirements=("doubler",), megabytes=1)


def imitated() -> Environment:
    """This Python as if it were another environment's."""
    environment = an_environment()
    environment.python.parent.mkdir(parents=True, exist_ok=True)
    environment.python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    environment.python.chmod(0o755)
    (environment.folder / "packages.json").write_text('{"doubler": "2.0"}')
    return environment


def doubler(*, timeout: float = 20, format: str = "doubling", installed: bool = True, **settings: str | int) -> Apart:
    return Apart(
        name="doubler",
        title="The Doubler",
        format=format,
        arithmetic=FLOAT32,
        environment=imitated() if installed else an_environment(),
        worker=WORKER,
        settings=tuple(settings.items()),
        timeout=timeout,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.doubling"
    path.write_text("times two")
    return path


def alive(session: ApartSession) -> bool:
    return session._process._process.poll() is None


def test_runs_and_says_what_ran_although_libraries_print(file: Path) -> None:
    engine = doubler()
    session = engine.load(file, expose=["inner"])
    assert (engine.missing(), engine.version(), session.outputs) == ("", "doubler 2.0", ("y", "inner"))
    assert session.kernels() == (Kernel(name="doubling", precision="float32", count=1),)
    assert session.float_islands() == ("double",)
    for x in (X, X[:, ::-1], np.zeros((0, 3), np.float32)):
        for y in session.run([x]):
            np.testing.assert_array_equal(y, 2 * x)
            assert y.dtype == np.float32 and y.shape == x.shape and y.flags.writeable


def test_an_exposed_tensor_of_an_onnx_file_reaches_the_worker(tmp_path: Path) -> None:
    path = small_network().save(tmp_path / "net.onnx")
    session = doubler(format="onnx", onnx=1).load(path)
    x = np.ones((1, 3, 16, 16), np.float32)
    np.testing.assert_array_equal(session.run([x])[0], 2 * x)
    with pytest.raises(EngineError, match="has to be float32"):
        session.run([x.astype(np.float64)])
    with pytest.raises(EngineError, match="no tensor 'nothing' to expose"):
        doubler(format="onnx").load(path, expose=["nothing"])


@pytest.mark.parametrize(
    ("mischief", "text"),
    [
        ("die", r"The Doubler's process died \(exit code 3\); it said last: out of luck"),
        ("abort", r"The Doubler's process died \(signal SIGABRT\)"),
        ("garbage", "answered what isobit does not understand: b'Welcome to the engine!"),
        ("lie about sizes", "answered what isobit does not understand: arrays of"),
        ("one array too many", "its worker returned 2 arrays for 1 outputs"),
    ],
)
def test_a_worker_that_breaks_is_one_clear_error_and_gone(file: Path, mischief: str, text: str) -> None:
    session = doubler(mischief=mischief).load(file)
    with pytest.raises(EngineError, match=text) as raised:
        session.run([X])
    assert str(file) in str(raised.value)
    assert not alive(session)
    with pytest.raises(EngineError, match="has ended: load the file again"):
        session.run([X])


def test_a_worker_that_hangs_is_ended(file: Path) -> None:
    session = doubler(mischief="hang", timeout=1.5).load(file)
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"did not answer within 1\.5 seconds; it said last: still thinking"):
        session.run([X])
    assert time.monotonic() - start < 10
    assert not alive(session)


def test_what_the_engine_raises_leaves_the_session_usable(file: Path) -> None:
    session = doubler(mischief="raise").load(file)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"The Doubler failed while it ran .*: no kernel for this$"):
            session.run([X])
    assert alive(session)


def test_a_refused_file_names_it(file: Path) -> None:
    with pytest.raises(EngineError, match=r"The Doubler refuses .*net\.doubling: 'times two' is no doubling"):
        doubler(mischief="refuse").load(file)
    with pytest.raises(EngineError, match="there is no file"):
        doubler().load(file.with_name("nothing"))


def test_wrong_inputs_do_not_reach_the_worker(file: Path) -> None:
    session = doubler().load(file)
    with pytest.raises(EngineError, match=r"takes 1 inputs \(x\), got 2"):
        session.run([X, X])
    with pytest.raises(EngineError, match="'x' has to be float32, got float64"):
        session.run([X.astype(np.float64)])
    with pytest.raises(EngineError, match=r"'x' has to have the shape batch × 3, got \(3, 2\)"):
        session.run([X.T])


def test_the_process_ends_with_its_session(file: Path) -> None:
    first = doubler().load(file)
    process = first._process._process
    del first
    gc.collect()
    assert process.wait(10) is not None
    closed = doubler().load(file)
    closed.close()
    assert not alive(closed)


def test_latency_is_that_of_the_worker_without_the_pipe(file: Path) -> None:
    session = doubler(mischief="sleep").load(file)
    wall = interleaved([session], [X], runs=3, warmup=0)[0]
    cpu = interleaved([session], [X], runs=3, warmup=0, clock=process_time)[0]
    assert all(20 <= ms < 200 for ms in wall)
    assert all(0 <= ms < 20 for ms in cpu)  # asleep, it takes no processor time
    clock = iter(range(0, 10_000, 1000)).__next__
    assert all(ms < 1000 for ms in interleaved([session], [X], runs=2, warmup=0, clock=clock)[0])


def test_a_missing_environment_says_which_command_installs_it(file: Path) -> None:
    engine = doubler(installed=False)
    assert engine.missing() == ("The Doubler is not installed. Install it with: isobit engines --install doubler")
    for call in (engine.version, lambda: engine.load(file)):
        with pytest.raises(EngineError, match="isobit engines --install doubler"):
            call()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"platforms": ("amiga-68k",)}, "has no package for .*, only for amiga-68k"),
        ({"pythons": ((2, 7), (3, 4))}, r"packages for Python 2\.7 to 3\.4, and this is 3\."),
        ({"commands": (("no-such-cc", "no-such-gcc"),)}, "needs no-such-cc or no-such-gcc, which is not on this"),
    ],
)
def test_what_this_machine_cannot_have(settings: dict[str, object], text: str) -> None:
    environment = Environment(name="n", package="p", requirements=("p",), megabytes=1, **settings)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=text):
        install(environment)
    engine = Apart(name="n", title="N", format="onnx", arithmetic=FLOAT32, environment=environment, worker=WORKER)
    assert engine.missing().startswith("N cannot be had here: ")


def test_no_room_on_the_disk() -> None:
    environment = Environment(name="n", package="p", requirements=("p",), megabytes=1 << 40)
    with pytest.raises(OutputError, match="free some space, or set ISOBIT_ENGINES"):
        install(environment)


def test_a_damaged_environment(file: Path) -> None:
    environment = imitated()
    (environment.folder / "packages.json").write_text("{")
    with pytest.raises(EngineError, match="is damaged: delete the folder"):
        environment.version()
    environment.python.unlink()
    with pytest.raises(EngineError, match=r"Python of The Doubler cannot be started"):
        doubler(installed=False).load(file)


def test_install_makes_an_environment_that_works_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    environment, told = tiny(tiny_wheel(tmp_path)), list[str]()
    assert not environment.installed()
    assert install(environment, tell=told.append) == environment.folder
    assert environment.installed() and environment.version() == "isobit-tiny 1.5"
    code = "import isobit_tiny, sys; print(isobit_tiny.ANSWER, sys.prefix)"
    printed = subprocess.run([environment.python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["42", str(environment.folder)]
    assert any("Successfully installed isobit-tiny" in line for line in told)
    before = len(told)
    install(environment, tell=told.append)
    assert len(told) == before
    assert sorted(p.name for p in home().iterdir()) == [".installing", environment.folder.name]


def test_a_bare_requirement_is_installed_without_what_it_asks_for(tmp_path: Path) -> None:
    wheel = tiny_wheel(tmp_path, needs="no-such-package-of-isobit")
    environment = replace(tiny(wheel), requirements=("pip",), bare=(str(wheel),))
    assert environment.folder != replace(environment, bare=()).folder
    install(environment)
    assert environment.version() == "isobit-tiny 1.5"


def test_a_worker_gets_the_file_that_was_rewritten_for_it(file: Path) -> None:
    """With the tensors to expose; what cannot be rewritten is an error of the engine."""
    seen = []

    def rewritten(path: Path, expose: Sequence[str]) -> bytes:
        seen.append((path, tuple(expose)))
        if path.read_bytes() == b"":
            raise EngineError("nothing to rewrite")
        return b"another"

    engine = replace(doubler(), rewrite=rewritten)
    session = engine.load(file, expose=["y"])
    np.testing.assert_array_equal(session.run([X])[0], 2 * X)
    assert seen == [(file, ("y",))]
    file.write_bytes(b"")
    with pytest.raises(EngineError, match="nothing to rewrite"):
        engine.load(file)


def test_a_failed_or_interrupted_install_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    environment = tiny(tiny_wheel(tmp_path, needs="no-such-package-of-isobit"))

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(environment, tell=interrupt)
    with pytest.raises(EngineError, match=r"tiny cannot be installed .*no-such-package-of-isobit"):
        install(environment)
    assert not environment.installed()
    assert not list((home() / ".installing" / environment.folder.name).iterdir())


def test_the_home_of_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ISOBIT_ENGINES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == tmp_path / "isobit" / "engines"
