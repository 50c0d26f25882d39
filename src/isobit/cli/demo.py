"""`isobit demo`: train, quantize, export, verify, in under a minute."""

from pathlib import Path
from typing import Annotated

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

\b
  isobit demo
  isobit demo -o /tmp/demo --json
"""


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files and the report go.")
    ] = Path("isobit-demo"),
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same integers.")] = 0,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Train a small network on handwritten digits, quantize it for two targets at 8 and 4 bits, export the files,
    run them on the real engines, and prove that they compute what was simulated.

    Nothing is downloaded. Needs: pip install 'isobit[demo]'.
    """
    from isobit.benchmark.demo import Demo, run_demo
    from isobit.cli import demo_table
    from isobit.cli.output import print_json, show, working

    with working(debug=debug) as watch:
        result = run_demo(output, Demo(seed=seed), progress=watch)
    if json:
        print_json(demo_table.as_json(result))
    else:
        show(*demo_table.page(result))
