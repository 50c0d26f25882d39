"""Engines as a table, and the installation of those that have environments of their own."""

from typing import Any

from rich import box
from rich.table import Table

from isobit.cli.progress import Watch
from isobit.core.errors import EngineError, IsobitError, SettingError, UnknownNameError
from isobit.engines import ENGINES, Apart, Engine
from isobit.engines.environment import Environment, home, install, remove


def overview() -> Table:
    """One row for each engine."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("engine", style="bold", no_wrap=True)
    table.add_column("version, or how to get it", overflow="fold")
    table.add_column("instructions")
    table.add_column("takes", no_wrap=True)
    table.add_column("environment", no_wrap=True)
    for row in as_json():
        table.add_row(
            row["name"],
            row["version"] or row["missing"],
            row["instruction_set"],
            row["format"],
            row["environment"] or "isobit's own",
        )
    table.caption = f"environments of their own lie in {home()}"
    return table


def as_json() -> list[dict[str, Any]]:
    """The engines for programs."""
    return [_row(make()) for make in ENGINES.values()]


def install_all(name: str, watch: Watch) -> dict[str, str]:
    """Install the environment of an engine, or of all; the errors of those that could not be, by name.

    With `all`, what this machine cannot have is no error: the table says why.
    """
    failed = {}
    for environment in _chosen(name):
        if name == "all" and environment.unavailable():
            continue

        def tell(line: str, of: str = environment.name) -> None:
            watch.stage(f"{of}: {line[:80]}")

        try:
            install(environment, tell=tell)
        except IsobitError as error:
            if name != "all":
                raise
            failed[environment.name] = str(error)
    return failed


def remove_all(name: str) -> None:
    """Delete the environment of an engine, or all; raises EngineError for one that is not there."""
    for environment in _chosen(name):
        if environment.folder.exists():
            remove(environment)
        elif name != "all":
            raise EngineError(f"there is no environment {environment.name} in {home()}")


def _chosen(name: str) -> list[Environment]:
    """The environment of an engine by its own name or the engine's. Raises SettingError for one of isobit's own."""
    makers = {engine: make() for engine, make in ENGINES.items()}
    environments = {e.environment.name: e.environment for e in makers.values() if isinstance(e, Apart)}
    if name == "all":
        return list(environments.values())
    if name in environments:
        return [environments[name]]
    if name not in makers:
        raise UnknownNameError("engine", name, [*makers, *environments, "all"])
    engine = makers[name]
    if isinstance(engine, Apart):
        return [engine.environment]
    reason = engine.missing() or f"{name} is installed"
    raise SettingError(f"{name} needs no environment of its own: {reason}")


def _row(engine: Engine) -> dict[str, Any]:
    missing = engine.missing()
    return {
        "name": engine.name,
        "version": None if missing else engine.version(),
        "missing": missing,
        "instruction_set": engine.instruction_set(),
        "format": engine.format,
        "environment": engine.environment.name if isinstance(engine, Apart) else "",
        "megabytes": engine.environment.megabytes if isinstance(engine, Apart) else None,
        "folder": str(engine.environment.folder) if isinstance(engine, Apart) else "",
    }
