"""`isobit train`: train a float or a quantized network by a recipe file; one table."""

from pathlib import Path
from typing import Annotated

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

\b
  isobit train recipe.toml -o runs/lsq-w4a4
  isobit train float.toml -o runs/float --epochs 1
  isobit train recipe.toml -o runs/lsq-w4a4 --devices 4 --tensorboard

The folder holds last.safetensors after every epoch. The same command
again goes on with an interrupted run, with the same final integers.
"""

Recipe = Annotated[Path, typer.Argument(help="The recipe, a TOML or JSON file.", show_default=False)]
Folder = Annotated[Path, typer.Option("--output", "-o", help="The folder of the run.", show_default=False)]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Instead of the recipe's.", show_default=False)]
Accelerator = Annotated[
    str | None,
    typer.Option(
        "--accelerator", metavar="NAME", help="cpu, cuda, mps, … [default: the recipe's, else auto]", show_default=False
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        metavar="N",
        help="Processes, each with its part of a batch. [default: the recipe's, else 1]",
        show_default=False,
    ),
]
Board = Annotated[
    bool | None,
    typer.Option("--tensorboard/--no-tensorboard", help="Write curves for TensorBoard.", show_default=False),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Instead of the recipe's.", show_default=False)]


def train(
    recipe: Recipe,
    output: Folder,
    epochs: Epochs = None,
    seed: Seed = None,
    accelerator: Accelerator = None,
    devices: Devices = None,
    tensorboard: Board = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Train a network by a recipe, with quantization where the recipe says so, and export what was trained.

    Exit code 10: the run did not converge (NC).
    """
    from isobit.cli import training
    from isobit.cli.output import print_json, show, working
    from isobit.core.memory import keep_freed_memory

    keep_freed_memory()
    with working(debug=debug) as watch:
        wanted = training.read(
            recipe, epochs=epochs, seed=seed, accelerator=accelerator, devices=devices, tensorboard=tensorboard
        )
        result = training.run(wanted, output, watch=watch)
    if not result.is_first:
        return
    print_json(training.as_json(result)) if json else show(training.table(result))
    if result.record.not_converged:
        raise typer.Exit(10)
