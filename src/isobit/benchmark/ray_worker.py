"""Who does the runs of a matrix: tasks on Ray, on this machine or a cluster (extra `isobit[ray]`)."""

import contextlib
import importlib
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isobit.benchmark.workers import POLL, Done, Job, end, error_of, start
from isobit.core.errors import MissingExtraError

GRACE = 30.0
"""Seconds that tasks have to end after they were cancelled."""


def on_ray(jobs: Sequence[Job]) -> Generator[Done]:
    """One task with one core, and one GPU where the cluster has any, for each job.

    It joins the cluster that RAY_ADDRESS names or that the program is connected to, else it starts one here. Folders
    have to be the same for every machine of a cluster. Raises MissingExtraError without Ray.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("Ray, which these workers are,", "ray") from error
    joined = ray.is_initialized()
    if not joined:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(do)
    under_way: dict[Any, Job] = {}
    try:
        for job in (replace(job, folder=str(Path(job.folder).absolute())) for job in jobs):
            under_way[task.remote(job.name, job.command, job.folder, str(Path.cwd()))] = job
        while under_way:
            (ended,), _ = ray.wait(list(under_way))
            job = under_way.pop(ended)
            yield Done(job.name, _error(ray, ended))
    finally:
        for reference in under_way:
            ray.cancel(reference)
        if under_way:
            with contextlib.suppress(KeyboardInterrupt):
                ray.wait(list(under_way), num_returns=len(under_way), timeout=GRACE)
        if not joined:
            ray.shutdown()


def do(name: str, command: tuple[str, ...], folder: str, here: str) -> str:
    """What a task does: run the command to its end, in the folder of the program that asked; the error, or nothing."""
    job = Job(name, command, folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    process = start(job, directory=here)
    try:
        while process.poll() is None:  # Ray cancels between two steps of Python, not within a wait
            time.sleep(POLL)
        return error_of(job, process.returncode)
    finally:
        end([process])


def _error(ray: Any, reference: Any) -> str:
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        return f"Ray lost it: {lines[-1] if lines else type(error).__name__}"
