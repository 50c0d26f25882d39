"""`isobit verify`: does an exported file do on an engine what it should?"""

from pathlib import Path
from typing import Annotated

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

\b
  isobit verify net.onnx
  isobit verify net.onnx --engine openvino --data test.npz --require exact
  isobit verify net.onnx --engines all --data imagenet/val
  isobit verify float.onnx --encodings float.encodings
  isobit verify net.onnx --model net.py:net -w net.safetensors \\
      --calibration imagenet/train --data imagenet/val --json
"""


def verify(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="An ONNX or LiteRT file, by isobit or by others.", show_default=False),
    ],
    engine: o.EngineName = None,
    engines: o.EngineNames = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="DATA", help=f"Inputs; random if not given. {o.DATA_HELP}"),
    ] = None,
    eval_samples: o.EvaluationSamples = 0,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Quantize this network again, by the recipe in the file, and compare the simulation too.",
        ),
    ] = None,
    weights: o.Weights = None,
    calibration: Annotated[
        str | None, typer.Option("--calibration", metavar="DATA", help="With --model: the calibration data of then.")
    ] = None,
    encodings: o.EncodingsOfFile = None,
    recipe: o.RecipeInstead = None,
    samples: o.Samples = 512,
    batch_size: o.BatchSize = 50,
    resize: o.Resize = None,
    crop: o.Crop = None,
    normalize: o.Normalize = None,
    require: o.Require = "bounded",
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Run an exported file on a real engine and compare it, integer by integer, with the integer reference.

    The verdict is exact (all outputs equal), bounded (they differ, and the cause is named) or broken. Exit code 9:
    the verdict is worse than required; 2 to 8: an error, told on stderr.
    """
    from isobit.cli import verifying
    from isobit.cli.data import Reading
    from isobit.cli.output import print_json, show, working
    from isobit.cli.requirement import check_verdict, exit_code

    check_verdict(require)
    job = verifying.Job(
        file=file, engine=engine, engines=engines, data=data, eval_samples=eval_samples or None, model=model,
        weights=weights, calibration=calibration, encodings=encodings, recipe=recipe, samples=samples or None,
        reading=Reading(batch_size=batch_size, resize=resize, crop=crop, normalize=normalize),
    )  # fmt: skip
    with working(debug=debug) as watch:
        result = verifying.run(job, watch) if engines is None else verifying.run_several(job, watch)
    if json:
        print_json(verifying.as_json(result))
    else:
        show(verifying.table(result))
    raise typer.Exit(max(exit_code(verdict, require) for verdict in result.verdicts))
