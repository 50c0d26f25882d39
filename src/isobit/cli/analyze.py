"""`isobit analyze`: which layers does quantization hurt?"""

from pathlib import Path

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

\b
  isobit analyze net.py:net -w net.safetensors -d imagenet/val -t snpe
  isobit analyze cifar10_resnet20 -d cifar10:train -t tvm --bits 4 \\
      --report layers.html
  isobit analyze float.onnx -d imagenet/val -t tensorrt
  isobit analyze quantized.onnx
"""


def analyze(
    context: typer.Context,
    model: o.Model,
    data: o.CalibrationOfNetwork = None,
    target: o.TargetName = None,
    weights: o.Weights = None,
    bits: o.Bits = None,
    weight_bits: o.WeightBits = None,
    activation_bits: o.ActivationBits = None,
    observer: o.Observer = None,
    weight_observer: o.WeightObserver = None,
    keep_float: o.KeepFloat = None,
    force: o.Quantize = None,
    layer_bits: o.LayerBits = None,
    recipe: o.RecipeFile = None,
    encodings: o.EncodingsOfFile = None,
    seed: o.Seed = None,
    samples: o.Samples = 512,
    batch_size: o.BatchSize = 50,
    resize: o.Resize = None,
    crop: o.Crop = None,
    normalize: o.Normalize = None,
    report: o.Report = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Quantize a network as `isobit quantize` does and show, layer by layer, what that costs.

    SQNR and cosine compare a layer's output with the float network's when everything is quantized. Isolated is the
    SQNR of the network's output when this layer alone is quantized, and share is its part of all such noise. A
    quantized file, ONNX or LiteRT, is judged as it is: what runs in float and what to change; a float one is a network.
    """
    from isobit.cli import analyzing, judging
    from isobit.cli.data import Reading
    from isobit.cli.output import print_json, show, working
    from isobit.cli.settings import recipe_of
    from isobit.core.records import to_json

    if model.endswith((".onnx", ".tflite")) and judging.is_for(Path(model), data, encodings):
        given = (data, target, weights, recipe, bits, weight_bits, activation_bits)
        _judge(Path(model), given, encodings, report, context.obj, json=json)
        return
    data = _calibration(data, encodings)
    settings = recipe_of(
        recipe, target=target, bits=bits, weight_bits=weight_bits, activation_bits=activation_bits,
        activation_observer=observer, weight_observer=weight_observer, keep_float=keep_float, quantize=force,
        layer_bits=layer_bits, seed=seed,
    )  # fmt: skip
    job = analyzing.Job(
        model=model, weights=weights, recipe=settings, data=data, samples=samples or None, report=report,
        command=context.obj,
        reading=Reading(batch_size=batch_size, resize=resize, crop=crop, normalize=normalize),
    )  # fmt: skip
    with working(debug=debug) as watch:
        record = analyzing.run(job, watch)
    if json:
        print_json(to_json(record))
    else:
        show(*analyzing.page(record, report))


def _calibration(data: str | None, encodings: Path | None) -> str:
    """The data of a network. Raises SettingError without any, or for what belongs to a file."""
    from isobit.core.errors import SettingError

    if encodings is not None:
        raise SettingError("--encodings are those of an ONNX file, and the model is a network")
    if data is None:
        raise SettingError("say what to calibrate on: --data DATA. See `isobit analyze --help`")
    return data


_NETWORKS = ("--data", "--target", "--weights", "--recipe", "--bits", "--weight-bits", "--activation-bits")


def _judge(
    file: Path, given: tuple[object, ...], encodings: Path | None, report: Path | None, command: str, *, json: bool
) -> None:
    from isobit.cli import judging
    from isobit.cli.output import print_json, show

    found = judging.run(file, dict(zip(_NETWORKS, given, strict=True)), encodings, report, command)
    if json:
        print_json(judging.as_json(found))
    else:
        show(judging.table(found, report))
