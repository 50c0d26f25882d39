"""`isobit engines`: what runs the files, and how to get it."""

from typing import Annotated

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

\b
  isobit engines
  isobit engines --install qnn
  isobit engines --install all

An engine whose packages conflict with isobit's gets an environment of its
own in the user's cache folder, or in the folder that ISOBIT_ENGINES names.
"""

Install = Annotated[
    str | None,
    typer.Option("--install", metavar="NAME|all", help="Install an engine's environment.", show_default=False),
]
Remove = Annotated[
    str | None,
    typer.Option("--remove", metavar="NAME|all", help="Delete an engine's environment.", show_default=False),
]


def engines(install: Install = None, remove: Remove = None, json: o.Json = False, debug: o.Debug = False) -> None:
    """List the engines: version or how to get it, instructions, format of the files, environment."""
    from isobit.cli import engine_tables as tables
    from isobit.cli.output import print_error, print_json, show, working
    from isobit.core.errors import EngineError, SettingError

    if install is not None and remove is not None:
        raise SettingError("--install and --remove exclude each other")
    failed: dict[str, str] = {}
    if remove is not None:
        tables.remove_all(remove)
    if install is not None:
        with working(debug=debug) as watch:
            failed = tables.install_all(install, watch)
    if json:
        print_json({"engines": tables.as_json(), "failed": failed})
    else:
        show(tables.overview())
    for name, error in failed.items():
        print_error(f"{name}: {error}", label="not installed: ")
    if failed:
        raise typer.Exit(EngineError.exit_code)
