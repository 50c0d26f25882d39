"""Who does the runs of a matrix: processes here and tasks on Ray, with commands that stand for trainings."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.processes import TAKE_CTRL_C
from isobit.benchmark.ray_worker import on_ray
from isobit.benchmark.workers import Done, Job, Workers, in_processes
from isobit.cli.bench import workers_of
from isobit.core.errors import SettingError

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1], 'record.json').write_text('{}')"
NOT_CONVERGED = WRITES + "; sys.exit(10)"
FAILS = "import sys; print('one line'); sys.exit('error: no such network')"
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
SILENT = "pass"


def job(folder: Path, name: str, program: str) -> Job:
    place = folder / name
    place.mkdir()
    return Job(name, (sys.executable, "-c", program, str(place)), str(place))


def check(workers: Workers, folder: Path) -> None:
    """Every run ends once, whatever the others do, and those without a result say why."""
    programs = {"fine": WRITES, "nc": NOT_CONVERGED, "fails": FAILS, "dies": DIES, "silent": SILENT, "last": WRITES}
    done = list(workers([job(folder, name, program) for name, program in programs.items()]))
    assert sorted(d.name for d in done) == sorted(programs)
    errors = {d.name: d.error for d in done if d.error}
    assert errors.keys() == {"fails", "dies", "silent"}
    assert errors["fails"].startswith("error: no such network (exit code 1; all it said is in ")
    assert (folder / "fails" / "run.log").read_text().splitlines() == ["one line", "error: no such network"]
    assert errors["dies"].startswith("it said nothing (signal 9;")
    assert errors["silent"].startswith("it ended without a record in ")


@pytest.mark.parametrize("count", [1, 3])
def test_processes(count: int, tmp_path: Path) -> None:
    check(in_processes(count), tmp_path)


def test_several_processes_run_at_once_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other's file: one after the other would never end."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program = (
        "import os, pathlib, sys, time\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "assert int(os.environ['OMP_NUM_THREADS']) <= max(1, (os.cpu_count() or 1) // 2)\n"
        "(place / 'record.json').write_text('{}')\n"
        "while len(list(place.parent.glob('*/record.json'))) < 2: time.sleep(0.02)\n"
    )
    done = list(in_processes(2)([job(tmp_path, name, program) for name in ("a", "b")]))
    assert sorted(done, key=lambda d: d.name) == [Done("a"), Done("b")]


def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    forever = "import pathlib, sys, time\npathlib.Path(sys.argv[1], 'up').touch()\ntime.sleep(600)"
    jobs = [job(tmp_path, "fine", WRITES), job(tmp_path, "slow", forever), job(tmp_path, "waiting", WRITES)]
    ended = in_processes(2)([jobs[0], jobs[1]])
    assert next(ended) == Done("fine")
    start = time.monotonic()
    ended.close()
    assert time.monotonic() - start < 10


INTERRUPTED = """
import sys
from pathlib import Path
from isobit.benchmark.ray_worker import on_ray
from isobit.benchmark.workers import Job, in_processes
workers = on_ray if sys.argv[2] == "ray" else in_processes(2)
folder = Path(sys.argv[1])
programs = {"fine": %r, "slow": %r}
jobs = [Job(n, (sys.executable, "-c", p, str(folder / n)), str(folder / n)) for n, p in programs.items()]
try:
    for done in workers(jobs):
        print(done.name, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
SLOW = "import os, pathlib, sys, time\npathlib.Path(sys.argv[1], 'pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"


def check_interrupt(kind: str, folder: Path) -> None:
    """SIGINT to the program alone, as from `kill -INT`: its runs end with it, and what is finished stays."""
    for name in ("fine", "slow"):
        (folder / name).mkdir()
    command = [sys.executable, "-c", TAKE_CTRL_C + INTERRUPTED % (WRITES, SLOW), str(folder), kind]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "fine\n"
    pid = folder / "slow" / "pid"
    wait_for(lambda: pid.exists() and pid.read_text() != "")
    program.send_signal(signal.SIGINT)
    assert program.communicate(timeout=60)[0] == "interrupted\n"
    wait_for(lambda: not Path("/proc", pid.read_text()).exists())
    assert (folder / "fine" / "record.json").read_text() == "{}"


def wait_for(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


on_linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")


@on_linux
def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    check_interrupt("processes", tmp_path)


@pytest.fixture
def local_ray() -> object:
    """Ray with two cores of this machine."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.usefixtures("local_ray")
def test_tasks_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(on_ray, tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    says_where = "import os, pathlib, sys; pathlib.Path(sys.argv[1], 'record.json').write_text(os.getcwd())"
    assert list(on_ray([job(tmp_path, "where", says_where)])) == [Done("where")]
    assert (tmp_path / "where" / "record.json").read_text() == str(tmp_path / "here")


@pytest.mark.slow
@on_linux
def test_an_interrupt_ends_the_tasks(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    check_interrupt("ray", tmp_path)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "Ray", ""])
def test_workers_that_there_are_none_of(text: str) -> None:
    with pytest.raises(SettingError, match="a whole number of at least 1, or 'ray'"):
        workers_of(text)
