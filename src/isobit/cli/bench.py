"""`isobit bench`: a matrix of training runs, and their table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isobit.cli import options as o

if TYPE_CHECKING:
    from isobit.benchmark.workers import Workers

EPILOG = """
Examples:

\b
  isobit bench matrix.toml -o runs/matrix
  isobit bench matrix.toml -o runs/matrix --workers 4
  isobit bench matrix.toml -o runs/matrix --workers ray --json

Each run has a folder of its own. The same command again does what is
missing: runs that are done are read, an interrupted one goes on. A run
that fails stops no other; the last lines say why it failed.
"""

MatrixFile = Annotated[Path, typer.Argument(help="The matrix, a TOML or JSON file.", show_default=False)]
Folder = Annotated[Path, typer.Option("--output", "-o", help="The folder of the runs.", show_default=False)]
WorkersOption = Annotated[
    str, typer.Option("--workers", "-w", help="How many runs at once, or `ray` for tasks on Ray.", metavar="N|ray")
]


def bench(
    matrix: MatrixFile, output: Folder, workers: WorkersOption = "1", json: o.Json = False, debug: o.Debug = False
) -> None:
    """Train every combination of methods, widths, targets, foldings and seeds, and print the table."""
    from isobit.benchmark.matrix import Matrix, markdown, run_matrix
    from isobit.cli.output import print_error, print_json, working
    from isobit.core.files import owned, write_text
    from isobit.recipes.codec import read_recipe

    with working(debug=debug) as watch:
        chosen, wanted = workers_of(workers), read_recipe(Matrix, matrix)
        with owned(output):
            outcome = run_matrix(wanted, output, workers=chosen, progress=watch)
            table = markdown(outcome.records, float_accuracy=wanted.float_accuracy)
            write_text(output / "table.md", table + "\n")
    if json:
        print_json({"records": outcome.records, "failed": outcome.failed})
    else:
        typer.echo(table)
    for name, error in outcome.failed.items():
        print_error(f"{name}: {error}", label="failed: ")
    if outcome.failed:
        raise typer.Exit(1)


def workers_of(text: str) -> "Workers":
    """Who does the runs; raises SettingError for what is neither a number of at least 1 nor `ray`."""
    from isobit.benchmark.ray_worker import on_ray
    from isobit.benchmark.workers import in_processes
    from isobit.core.errors import SettingError

    if text == "ray":
        return on_ray
    if not text.isdecimal() or int(text) < 1:
        raise SettingError(f"--workers is a whole number of at least 1, or 'ray', got {text!r}")
    return in_processes(int(text))
