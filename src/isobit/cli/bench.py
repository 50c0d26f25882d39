"""`isobit bench`: a matrix of training runs, and their table."""

from pathlib import Path
from typing import Annotated

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

\b
  isobit bench matrix.toml -o runs/matrix
  isobit bench matrix.toml -o runs/matrix --json

Each run has a folder of its own. The same command again does what is
missing: runs that are done are read, an interrupted one goes on.
"""

MatrixFile = Annotated[Path, typer.Argument(help="The matrix, a TOML or JSON file.", show_default=False)]
Folder = Annotated[Path, typer.Option("--output", "-o", help="The folder of the runs.", show_default=False)]


def bench(matrix: MatrixFile, output: Folder, json: o.Json = False, debug: o.Debug = False) -> None:
    """Train every combination of methods, widths, targets, foldings and seeds, and print the table."""
    from isobit.benchmark.matrix import Matrix, markdown, run_matrix
    from isobit.cli.output import print_json, working
    from isobit.core.files import write_text
    from isobit.recipes.codec import read_recipe

    with working(debug=debug) as watch:
        wanted = read_recipe(Matrix, matrix)
        output.mkdir(parents=True, exist_ok=True)
        records = run_matrix(wanted, output, progress=watch)
        table = markdown(records, float_accuracy=wanted.float_accuracy)
        write_text(output / "table.md", table + "\n")
    if json:
        print_json({"records": records})
    else:
        typer.echo(table)
