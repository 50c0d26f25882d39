"""`isobit verify`: does an exported file do on an engine what it should?"""

from pathlib import Path
from typing import Annotated

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

    isobit verify net.onnx

    isobit verify net.onnx --engine openvino --data test.npz --json
"""


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file that isobit wrote.", show_default=False)],
    engine: o.EngineName = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="DATA", help=f"Inputs. {o.DATA_HELP} [default: random]", show_default=False),
    ] = None,
    samples: o.EvaluationSamples = 0,
    batch_size: o.BatchSize = 50,
    resize: o.Resize = None,
    crop: o.Crop = None,
    normalize: o.Normalize = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Run an exported file on a real engine and compare it, integer by integer, with the integer reference.

    Exit code 0: exact, or bounded with a cause that is named; 9: broken; 2 to 8: an error, told on stderr.
    """
    from isobit.cli import rows
    from isobit.cli.data import Reading, load_data
    from isobit.cli.output import facts, print_json, show, verdict_text, working
    from isobit.core.records import to_json
    from isobit.recipes import workflow

    reading = Reading(batch_size=batch_size, resize=resize, crop=crop, normalize=normalize)
    with working(debug=debug) as watch:
        watch.stage(f"loading {file.name}")
        inputs = None if data is None else load_data(data, reading, samples=samples or None)
        progress = watch if inputs is None else inputs.counted(watch)
        found = workflow.verify(file, None, inputs, engine=engine, progress=progress)
    if json:
        print_json({"certificate": to_json(found)})
    else:
        measured = "random inputs over the range of the first quantizer" if inputs is None else inputs.text
        accuracy = rows.accuracies(found.accuracy, measured) if inputs is not None and found.accuracy else []
        show(
            facts(
                [
                    ("file", str(file)),
                    ("target", found.target),
                    ("verdict", verdict_text(found.verdict, found.cause)),
                    *rows.certificate(found),
                    *accuracy,
                    ("inputs", f"{found.samples:,} samples: {measured}"),
                ]
            )
        )
    if found.verdict == "broken":
        raise typer.Exit(9)
