"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

MODEL_HELP = (
    "The network: file.py:callable or package.module:callable (a function or class that needs no arguments, or an "
    "nn.Module object), a float ONNX file, or the name of a pretrained one, such as cifar10_resnet20."
)
DATA_HELP = (
    "a folder with one folder of images per class; an .npz file with x and, for accuracy, y; file.py:callable that "
    "gives batches; or cifar10:train, cifar10:test, digits:train, digits:test, imagenet-sample."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", "-w", metavar="FILE", help="Weights of the network (.safetensors).", show_default=False),
]
CalibrationData = Annotated[
    str, typer.Option("--data", "-d", metavar="DATA", help=f"Calibration data: {DATA_HELP}", show_default=False)
]
CalibrationOfNetwork = Annotated[
    str | None,
    typer.Option("--data", "-d", metavar="DATA", help=f"Calibration data: {DATA_HELP}", show_default=False),
]
CalibrationOrNone = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        metavar="DATA",
        help=f"Calibration data: {DATA_HELP} Without any: none (batch norm and drawn images), or inputs made for the "
        "network by dead-leaves, zeroq or gdfq, all with --input-shape.",
        show_default=False,
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="C,H,W",
        help="Shape of one sample, where no data show it: 3,224,224. Their values are those of --normalize, or of "
        "mean 0 and deviation 1.",
        show_default=False,
    ),
]
Balance = Annotated[
    bool, typer.Option("--balance", help="Draw equally from each domain of the data, such as day and night.")
]
EvaluationData = Annotated[
    str | None,
    typer.Option(
        "--eval-data",
        metavar="DATA",
        help="Data to measure and verify on, with labels for accuracy; the calibration data if not given.",
        show_default=False,
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples",
        "-n",
        metavar="N",
        help="Calibrate on at most N samples, evenly spread; 0 for all.",
    ),
]
EvaluationSamples = Annotated[
    int,
    typer.Option(
        "--eval-samples",
        metavar="N",
        help="Evaluate on at most N samples, evenly spread. [default: all]",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", metavar="N", help="Samples per batch.")]
Resize = Annotated[
    int | None,
    typer.Option(
        "--resize",
        metavar="N",
        help="Shorter side of images; 0 leaves them as they are. [default: 256]",
        show_default=False,
    ),
]
Crop = Annotated[
    int | None,
    typer.Option(
        "--crop",
        metavar="N",
        help="Side of the middle part of images; 0 for the whole. [default: 224]",
        show_default=False,
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize",
        metavar="HOW",
        help="torch (ImageNet's mean and std), tf (x / 127.5 − 1), unit (x / 255) or pixels (0 to 255). "
        "[default: torch for images, nothing for .npz]",
        show_default=False,
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target", "-t", metavar="NAME", help="What to quantize for: see `isobit targets`.", show_default=False
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits",
        metavar="N",
        help="Width of weights and activations. [default and choice: the target's]",
        show_default=False,
    ),
]
WeightBits = Annotated[
    int | None, typer.Option("--weight-bits", metavar="N", help="Width of weights.", show_default=False)
]
ActivationBits = Annotated[
    int | None, typer.Option("--activation-bits", metavar="N", help="Width of activations.", show_default=False)
]
Observer = Annotated[
    str | None,
    typer.Option(
        "--observer",
        metavar="NAME",
        help="How ranges of activations are found: min_max, percentile, mse, aciq, auto, … "
        "[default: min_max at 8 bits, mse below]",
        show_default=False,
    ),
]
WeightObserver = Annotated[
    str | None,
    typer.Option("--weight-observer", metavar="NAME", help="How ranges of weights are found.", show_default=False),
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-float",
        metavar="PATTERN",
        help="Layers to leave in float; * and ? match. Can be given several times.",
        show_default=False,
    ),
]
Quantize = Annotated[
    list[str] | None,
    typer.Option(
        "--quantize",
        metavar="PATTERN",
        help="Layers that have to be quantized: an error where the target cannot.",
        show_default=False,
    ),
]
LayerBits = Annotated[
    list[str] | None,
    typer.Option(
        "--layer-bits",
        metavar="PATTERN=N",
        help="Width of some layers: 'layer1.*=4', or 'layer1.*=4,8' for weights and activations.",
        show_default=False,
    ),
]
Equalize = Annotated[
    bool | None,
    typer.Option(
        "--equalize/--no-equalize",
        help="Even out the ranges of channels over neighbouring layers. [default: where a weight has one scale]",
        show_default=False,
    ),
]
CorrectBiases = Annotated[
    bool | None,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Give back to biases what rounding takes from the mean of a layer's output.",
        show_default=False,
    ),
]
AvoidSaturation = Annotated[
    bool | None,
    typer.Option(
        "--avoid-saturation/--no-avoid-saturation",
        help="Give larger steps to the channels whose integers can leave a register, so that the file computes the "
        "same on x86 before VNNI (AVX2, AVX-512).",
        show_default=False,
    ),
]

Exact = Annotated[
    bool | None,
    typer.Option(
        "--exact",
        help="Choose scales with which all engines and the simulation round alike, and keep the rounding in front of "
        "residual adds. Steps grow by about 1 in 1,000. It avoids saturation too, unless told not to.",
        show_default=False,
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        "--group-size",
        metavar="N",
        help="How many weights share a scale, on targets for weights alone: 16, 32, 64 or 128. [default: 32]",
        show_default=False,
    ),
]
ReconstructionName = Annotated[
    str | None,
    typer.Option(
        "--reconstruction",
        metavar="NAME",
        help="Round weights by what data shows: gptq (seconds; done where nothing else is said), adaround, brecq "
        "or qdrop (minutes; pays below 8 bits), or none. Interrupted, it goes on when the same command is given again.",
        show_default=False,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="FILE",
        help="Settings as TOML or JSON; options go over what it says.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Seed of whatever is random. [default: 0]", show_default=False)
]
EncodingsOfFile = Annotated[
    Path | None,
    typer.Option("--encodings", metavar="FILE", help="AIMET's encodings, by which a float ONNX file is quantized."),
]
RecipeInstead = Annotated[
    Path | None,
    typer.Option("--recipe", "-r", metavar="FILE", help="With --model: settings instead of those in the file."),
]
EngineNames = Annotated[
    str | None,
    typer.Option(
        "--engines",
        metavar="NAMES",
        help="One table of several engines, separated by commas, or `all` that are installed.",
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        "-e",
        metavar="NAME",
        help="One of `isobit engines`. [default: the target's first that is installed]",
        show_default=False,
    ),
]
Require = Annotated[
    str,
    typer.Option("--require", metavar="VERDICT", help="exact or bounded: the least verdict for exit code 0."),
]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write an HTML report.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; also ISOBIT_DEBUG=1.")]
OutputFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="The ONNX file to write; none is kept if not given."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="What --output writes: onnx, or the form that the target's own tool takes, such as aimet, tensorrt or "
        "openvino (docs/exporting.md). [default: the target's first]",
        show_default=False,
    ),
]
Verify = Annotated[
    bool | None,
    typer.Option("--verify/--no-verify", help="Run the file on the target's engine. [default: if it is installed]"),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        help="Lose no more than this many points of top-1 on --eval-data, which needs labels: from ranges over learned "
        "roundings to more bits for the layers that cost most. Exit code 9 where the best found loses more.",
        show_default=False,
    ),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        metavar="N",
        help="With --max-drop: begin no step later than this, and keep the best found.",
        show_default=False,
    ),
]
Faster = Annotated[
    bool,
    typer.Option(
        "--faster",
        help="Leave in float what the engine runs faster that way, measured in turns on the target's engine.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of a recipe, such as --set smooth=0.5; may be given several times.",
        show_default=False,
    ),
]
