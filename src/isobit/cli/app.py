"""The group of all commands."""

from typing import Annotated

import typer

from isobit.cli import analyze, bench, demo, engines, quantize, targets, train, verify
from isobit.cli.group import Commands

app = typer.Typer(
    name="isobit",
    cls=Commands,
    help="Quantize PyTorch networks for a named target, export them, run them on the real engine, and prove that both "
    "agree integer by integer.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=quantize.EPILOG)(quantize.quantize)
app.command(epilog=verify.EPILOG)(verify.verify)
app.command(epilog=analyze.EPILOG)(analyze.analyze)
app.command(epilog=train.EPILOG)(train.train)
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=targets.EPILOG)(targets.targets)
app.command(epilog=engines.EPILOG)(engines.engines)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"isobit {version('isobit')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; also ISOBIT_DEBUG=1.")
    ] = False,
) -> None:
    """Print the help where no command is given."""
    del version, debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
