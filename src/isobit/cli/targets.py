"""`isobit targets`: what isobit can quantize for."""

from typing import Annotated

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

    isobit targets

    isobit targets tensorrt
"""


def targets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show all of this one.", show_default=False)
    ] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """List the targets, or show one with its number formats, its placement of quantizers and its source."""
    del debug
    from isobit.cli import target_tables
    from isobit.cli.output import print_json, show
    from isobit.recipes.table import look_up
    from isobit.targets import TARGETS

    if name is None:
        if json:
            print_json({"targets": [target_tables.as_json(p) for p in TARGETS.values()]})
        else:
            show(target_tables.overview(TARGETS.values()))
        return
    profile = look_up("target", TARGETS, name)
    if json:
        print_json(target_tables.as_json(profile))
    else:
        show(target_tables.details(profile))
