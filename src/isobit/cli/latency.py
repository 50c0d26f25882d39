"""`isobit latency`: how fast are files on engines, and each layer of a network at each width?"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

\b
  isobit latency float.onnx ptq.onnx qat.onnx
  isobit latency ptq.onnx qat.onnx --model net.py:net --batch 1,8,32
  isobit latency ptq.onnx --engines onnxruntime,openvino --json
  isobit latency --layers --model net.py:net -d data.py:good \\
      -t onnxruntime-x86 --bits 8 --bits 4,8
"""

Files = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FILE]...", help="ONNX or LiteRT files, compared with the first.", show_default=False),
]
Network = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help=f"Its float file is made and comes first. {o.MODEL_HELP}"),
]
Layers = Annotated[
    bool,
    typer.Option("--layers", help="Each layer of --model alone, in float and at each of --bits, instead of files."),
]
Widths = Annotated[
    list[str] | None,
    typer.Option(
        "--bits",
        metavar="W[,A]",
        help="With --layers: bits of weights and activations; can be given several times. [default: the target's]",
        show_default=False,
    ),
]
Batches = Annotated[
    str | None,
    typer.Option("--batch", metavar="N,…", help="Batch sizes. [default: 1,32; with --layers 1]", show_default=False),
]
Engines = Annotated[
    str | None,
    typer.Option(
        "--engines", metavar="NAMES", help="Separated by commas. [default: all that are installed]", show_default=False
    ),
]
Runs = Annotated[int, typer.Option("--runs", metavar="N", help="Runs of which a time is the median.")]
Threads = Annotated[int, typer.Option("--threads", metavar="N", help="Threads of the engine.")]
ClockName = Annotated[
    Literal["wall", "cpu"], typer.Option("--clock", help="cpu: the time of this process alone, on a busy machine.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FILE",
        help="With --layers: where times are kept, so that no layer is measured twice. [default: ~/.cache/isobit]",
        show_default=False,
    ),
]


def latency(
    files: Files = None,
    model: Network = None,
    weights: o.Weights = None,
    engines: Engines = None,
    batch: Batches = None,
    layers: Layers = False,
    data: o.CalibrationOfNetwork = None,
    target: o.TargetName = None,
    bits: Widths = None,
    runs: Runs = 100,
    threads: Threads = 1,
    clock: ClockName = "wall",
    cache: Cache = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Measure files on engines: median and 99th percentile, samples a second, and the speed beside the first file.

    All files are loaded in one process and run in turns, on each engine and at each batch size. With --layers, every
    layer of a network is a file of its own: its time in float and at each width, what the engine runs in float, and how
    far the sum of the layers is from the whole network.
    """
    from isobit.cli import layer_times, timing
    from isobit.cli.output import print_json, show, working

    job = timing.Job(
        files=tuple(files or ()), model=model, weights=weights, engines=engines, batch=batch, data=data, target=target,
        widths=tuple(bits or ()), runs=runs, threads=threads, clock=clock, cache=cache,
    )  # fmt: skip
    part = layer_times if layers else timing
    with working(debug=debug) as watch:
        found = part.run(job, watch)
    if json:
        print_json(part.as_json(found))
    else:
        show(*part.page(found))
