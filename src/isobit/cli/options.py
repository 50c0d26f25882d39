"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

MODEL_HELP = (
    "The network: file.py:callable or package.module:callable (a function or class that needs no arguments, or an "
    "nn.Module object), or the name of a pretrained one, such as cifar10_resnet20."
)
DATA_HELP = (
    "A folder with one folder of images per class, an .npz file with x and y, file.py:callable that gives batches, or "
    "cifar10:train, cifar10:test, digits:train, digits:test, imagenet-sample."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Weights = Annotated[
    Path | None, typer.Option("--weights", "-w", help="Weights of the network: a .safetensors file.", show_default=False)
]
CalibrationData = Annotated[
    str, typer.Option("--data", "-d", metavar="DATA", help=f"Calibration data. {DATA_HELP}", show_default=False)
]
EvaluationData = Annotated[
    str | None,
    typer.Option(
        "--eval-data",
        metavar="DATA",
        help="Data with labels on which to measure and verify; the calibration data where it is not given.",
        show_default=False,
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", "-n", min=0, help="Calibrate on at most so many samples, evenly spread; 0 for all.")
]
EvaluationSamples = Annotated[
    int, typer.Option("--eval-samples", min=0, help="Evaluate on at most so many samples, evenly spread; 0 for all.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Samples per batch.")]
Resize = Annotated[
    int | None,
    typer.Option("--resize", min=0, help="Shorter side of images; 0 leaves them. [default: 256]", show_default=False),
]
Crop = Annotated[
    int | None,
    typer.Option("--crop", min=0, help="Middle part of images; 0 for the whole. [default: 224]", show_default=False),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize",
        metavar="HOW",
        help="torch (ImageNet's mean and std), tf (x / 127.5 − 1), unit (x / 255) or pixels. [default: torch for "
        "images, none for .npz]",
        show_default=False,
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", "-t", metavar="NAME", help="What to quantize for: see `isobit targets`.", show_default=False),
]
Bits = Annotated[
    int | None, typer.Option("--bits", help="Width of weights and activations, 1 to 8.", show_default=False)
]
WeightBits = Annotated[int | None, typer.Option("--weight-bits", help="Width of weights.", show_default=False)]
ActivationBits = Annotated[
    int | None, typer.Option("--activation-bits", help="Width of activations.", show_default=False)
]
Observer = Annotated[
    str | None,
    typer.Option(
        "--observer",
        metavar="NAME",
        help="How ranges of activations are found: min_max, percentile, mse, kl_divergence, … [default: min_max at 8 "
        "bits, mse below]",
        show_default=False,
    ),
]
WeightObserver = Annotated[
    str | None,
    typer.Option("--weight-observer", metavar="NAME", help="How ranges of weights are found.", show_default=False),
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option("--keep-float", metavar="PATTERN", help="Layers to leave in float; * and ? match.", show_default=False),
]
Quantize = Annotated[
    list[str] | None,
    typer.Option(
        "--quantize", metavar="PATTERN", help="Layers that have to be quantized; an error if not.", show_default=False
    ),
]
LayerBits = Annotated[
    list[str] | None,
    typer.Option(
        "--layer-bits",
        metavar="PATTERN=BITS",
        help="Width of some layers: 'layer1.*=4', or 'layer1.*=4,8' for weights and activations.",
        show_default=False,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe", "-r", metavar="FILE", help="Settings as TOML or JSON; options override it.", show_default=False
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of whatever is random. [default: 0]", show_default=False)]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine", "-e", metavar="NAME", help="onnxruntime, openvino or fake. [default: the target's first installed]",
        show_default=False,
    ),
]  # fmt: skip
Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write an HTML report.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; also ISOBIT_DEBUG=1.")]
