"""`isobit quantize`: quantize, export, verify; one table."""

import typer

from isobit.cli import options as o

EPILOG = """
Examples:

\b
  isobit quantize net.py:net -w net.safetensors -d imagenet/val \\
      -t tensorrt -o net.onnx
  isobit quantize nets.resnet:ResNet18 -d calibration.npz \\
      --eval-data test.npz -t onnxruntime-x86 --bits 4 --report run.html
  isobit quantize cifar10_resnet20 -d cifar10:train --eval-data cifar10:test \\
      -t openvino-cpu --layer-bits 'layer3.*=4' --keep-float linear
  isobit quantize cifar10_resnet20 -d cifar10:train -n 1024 \\
      --eval-data cifar10:test -t openvino-cpu --bits 4 --reconstruction brecq
  isobit quantize cifar10_resnet20 -d none --input-shape 3,32,32 \\
      --eval-data cifar10:test -t snpe
  isobit quantize cifar10_resnet20 -d cifar10:train -n 1024 \\
      --eval-data cifar10:test -t onnxruntime-x86 --bits 4 --max-drop 1
  isobit quantize nets.bert:net -d tokens.npz \\
      -t onnxruntime-weights --bits 4 --group-size 64 -o bert.onnx
"""


def quantize(
    context: typer.Context,
    model: o.Model,
    data: o.CalibrationOrNone,
    target: o.TargetName = None,
    output: o.OutputFile = None,
    format: o.Format = None,
    weights: o.Weights = None,
    bits: o.Bits = None,
    weight_bits: o.WeightBits = None,
    activation_bits: o.ActivationBits = None,
    observer: o.Observer = None,
    weight_observer: o.WeightObserver = None,
    keep_float: o.KeepFloat = None,
    force: o.Quantize = None,
    layer_bits: o.LayerBits = None,
    group_size: o.GroupSize = None,
    equalize: o.Equalize = None,
    bias_correction: o.CorrectBiases = None,
    reconstruction: o.ReconstructionName = None,
    avoid_saturation: o.AvoidSaturation = None,
    exact: o.Exact = None,
    max_drop: o.MaxDrop = None,
    max_minutes: o.MaxMinutes = None,
    faster: o.Faster = False,
    chosen: o.Set = None,
    recipe: o.RecipeFile = None,
    seed: o.Seed = None,
    samples: o.Samples = 512,
    input_shape: o.InputShape = None,
    balance: o.Balance = False,
    eval_data: o.EvaluationData = None,
    eval_samples: o.EvaluationSamples = 0,
    batch_size: o.BatchSize = 50,
    resize: o.Resize = None,
    crop: o.Crop = None,
    normalize: o.Normalize = None,
    verify: o.Verify = None,
    engine: o.EngineName = None,
    require: o.Require = "bounded",
    report: o.Report = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Quantize a trained network for a target from calibration data, export it, and verify the file.

    Given again, it goes on where it stopped. Exit code 9: a worse verdict or a broken promise; 2 to 8: an error."""
    from isobit.cli import quantizing
    from isobit.cli.settings import recipe_of

    settings = recipe_of(recipe, chosen, target=target, bits=bits, weight_bits=weight_bits, group_size=group_size,
        keep_float=keep_float, activation_bits=activation_bits, layer_bits=layer_bits, quantize=force, seed=seed,
        activation_observer=observer, weight_observer=weight_observer, equalize=equalize, exact=exact,
        bias_correction=bias_correction, reconstruction=reconstruction, avoid_saturation=avoid_saturation)  # fmt: skip
    job = quantizing.Job(
        model=model, weights=weights, recipe=settings, data=data, samples=samples or None, eval_data=eval_data,
        eval_samples=eval_samples or None, output=output, format=format, report=report, verify=verify, engine=engine,
        promise=quantizing.promise_of(max_drop, max_minutes), input_shape=input_shape, balance=balance, faster=faster,
        reading=quantizing.reading_of(batch_size, resize, crop, normalize), command=context.obj)  # fmt: skip
    raise typer.Exit(quantizing.shown(job, require=require, json=json, debug=debug))
