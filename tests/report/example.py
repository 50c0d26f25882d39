"""Run records like a real one, made up from a seed: a residual network with every part of a report filled in."""

import random
from dataclasses import replace

import numpy as np
from scipy.stats import norm

from isobit.core.records import (
    Accuracy,
    Certificate,
    Comparison,
    FloatOp,
    Histogram,
    Kernel,
    Latency,
    LayerRecord,
    Mismatch,
    RunRecord,
    TensorRecord,
)
from isobit.core.risks import OverflowRisk

SOURCE = "engine documentation, quantization chapter; kernels read from the profile of version 1.31.1"


def histogram(mean: float, spread: float, values: int, bins: int, *, rectified: bool = False) -> Histogram:
    """Expected counts of a normal distribution, or of its rectified half."""
    low, high = (0.0 if rectified else mean - 4.2 * spread), mean + 4.2 * spread
    edges = np.linspace(low, high, bins + 1)
    counts = np.round(np.diff(norm.cdf(edges, mean, spread)) * values).astype(int)
    if rectified:
        counts[0] += int(norm.cdf(0.0, mean, spread) * values)
    return Histogram(low=low, high=high, counts=tuple(int(c) for c in counts))


def weight(name: str, channels: int, values: int, bits: int, rng: random.Random, bins: int) -> TensorRecord:
    spread = rng.uniform(0.01, 0.08)
    high = 2 ** (bits - 1) - 1
    scales = tuple(spread * rng.uniform(2.2, 4.2) / high for _ in range(channels))
    return TensorRecord(
        name=f"{name}.weight",
        role="weight",
        scheme=f"int{bits}, symmetric, per channel 0",
        bits=bits,
        quant_min=-high - 1,
        quant_max=high,
        clip_low=-max(scales) * (high + 1),
        clip_high=max(scales) * high,
        scale=scales,
        zero_point=(0,) * channels,
        histogram=histogram(0.0, spread, values, bins),
        clipped=rng.uniform(0, 2e-4),
    )


def activation(name: str, bits: int, rng: random.Random, bins: int, *, rectified: bool) -> TensorRecord:
    spread = rng.uniform(0.4, 2.5)
    levels = 2**bits - 1
    zero = 0 if rectified else rng.randrange(levels // 3, levels // 2)
    scale = (3.4 if rectified else 6.4) * spread / levels
    return TensorRecord(
        name=f"{name}.output",
        role="activation",
        scheme=f"uint{bits}, asymmetric, per tensor",
        bits=bits,
        quant_min=0,
        quant_max=levels,
        clip_low=-zero * scale,
        clip_high=(levels - zero) * scale,
        scale=(scale,),
        zero_point=(zero,),
        histogram=histogram(0.0, spread, 3_000_000, bins, rectified=rectified),
        clipped=rng.uniform(0.0001, 0.004),
    )


def layers(blocks: tuple[int, ...], bits: int, rng: random.Random, bins: int) -> tuple[LayerRecord, ...]:
    """A stem, stages of residual blocks, and a classifier."""
    plan = [("conv1", "conv2d", 3, 64, 7, 112)]
    channels = 64
    for stage, count in enumerate(blocks):
        wide, side = 64 * 2 ** min(stage, 3), 56 >> min(stage, 3)
        for block in range(count):
            prefix = f"layer{stage + 1}.{block}"
            plan.append((f"{prefix}.conv1", "conv2d", channels, wide, 3, side))
            plan.append((f"{prefix}.conv2", "conv2d", wide, wide, 3, side))
            if channels != wide:
                plan.append((f"{prefix}.downsample.0", "conv2d", channels, wide, 1, side))
            plan.append((f"{prefix}.add", "add", wide, wide, 0, side))
            channels = wide
    plan.append(("fc", "linear", channels, 1000, 1, 1))
    noise = [rng.lognormvariate(0, 1.1) for _ in plan]
    built = []
    for i, (name, op, cin, cout, kernel, side) in enumerate(plan):
        values = cin * cout * kernel * kernel
        own = 8 if name in ("conv1", "fc") else bits
        sqnr = 44 - 6.02 * (8 - own) - 10 * i / len(plan) - rng.uniform(0, 9)
        isolated = 48 - 6.02 * (8 - own) - 4.343 * np.log(noise[i])
        tensors = (activation(name, own, rng, bins, rectified=not name.endswith(("add", "fc", "downsample.0"))),)
        if values:
            tensors = (weight(name, cout, values, own, rng, bins), *tensors)
        built.append(
            LayerRecord(
                name=name,
                op=op,
                parameters=values,
                macs=values * side * side,
                weight_bits=own if values else 32,
                activation_bits=own,
                sqnr_db=sqnr,
                cosine=1 - 10 ** (-sqnr / 10) / 2,
                isolated_db=float(isolated),
                isolated_cosine=float(1 - 10 ** (-isolated / 10) / 2),
                sensitivity=noise[i] / sum(noise),
                tensors=tensors,
            )
        )
    return tuple(built)


def example(
    *,
    target: str = "onnxruntime-x86",
    engine: str = "onnxruntime",
    bits: int = 8,
    seed: int = 0,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    bins: int = 512,
) -> RunRecord:
    """An exact run on `engine`."""
    rng = random.Random(seed)
    found = layers(blocks, bits, rng, bins)
    macs, weights = sum(x.macs for x in found), sum(x.parameters for x in found)
    lost = {8: 9, 4: 214}.get(bits, 40)
    accuracy = (
        Accuracy(execution="float", right=3488, total=5000),
        Accuracy(execution="simulation", right=3488 - lost, total=5000),
        Accuracy(execution="reference", right=3488 - lost, total=5000),
        Accuracy(execution=engine, right=3488 - lost, total=5000),
    )
    latency = tuple(
        Latency(engine=engine, batch=b, float_ms=11.83 * b**0.93, quantized_ms=4.41 * b**0.9,
                speedup=11.83 / 4.41 * b**0.03, runs=200, note="same engine, float32" if b == 1 else "")
        for b in (1, 8)
    )  # fmt: skip
    certificate = Certificate(
        file=f"resnet18-w{bits}.onnx",
        sha256="9f2c" * 16,
        target=target,
        engine=engine,
        engine_version="1.31.1",
        instruction_set="AVX512-VNNI",
        samples=5000,
        verdict="exact",
        comparisons=(
            Comparison(
                left="simulation", right="reference", equal=4_999_871, total=5_000_000, largest=1.0,
                first=Mismatch(op="QLinearConv", name="layer2.0.conv1", differ=3, total=100_352, largest=1.0,
                               rule="float32 sum of products rounds a tie that the integers do not have"),
            ),
            Comparison(left="reference", right=engine, equal=5_000_000, total=5_000_000, largest=0.0),
        ),
        kernels=(
            Kernel(name="QLinearConv", precision="int8", count=20),
            Kernel(name="QLinearAdd", precision="int8", count=8),
            Kernel(name="QGemm", precision="int8", count=1),
            Kernel(name="QuantizeLinear", precision="float32 to int8", count=1),
            Kernel(name="Softmax", precision="float32", count=1),
        ),
        accuracy=accuracy[-1:],
        latency=latency[:1],
        integers_sha256="51ab" * 16,
        versions={"onnxruntime": "1.31.1", "numpy": "2.4.6"},
    )  # fmt: skip
    return RunRecord(
        title=f"PTQ, {bits}-bit, 512 images",
        network="resnet18",
        target=target,
        target_source=SOURCE,
        recipe={
            "format": 1,
            "target": target,
            "weight": {"bits": bits, "observer": "mse", "quantizer": "fixed"},
            "activation": {"bits": bits, "observer": "histogram", "percentile": 99.99},
            "calibration": {"images": 512, "batch": 32},
            "algorithms": ["fold_batch_norm", "equalize", "bias_correction"],
            "keep": {"conv1": 8, "fc": 8},
        },
        seed=seed,
        versions={"isobit": "0.1.0", "torch": "2.13.0", "onnx": "1.23.2", "onnxruntime": "1.31.1"},
        layers=found,
        float_ops=(
            FloatOp(name="softmax", op="Softmax", reason="the target has no integer kernel for Softmax"),
            FloatOp(name="normalize", op="Sub", reason="stands before the first quantizer"),
        ),
        warnings=("layer3.1.conv2: 4 of 256 channels have a weight range under 1e-6; their scale was raised to 1e-8",),
        accuracy=accuracy,
        latency=latency,
        certificates=(certificate,),
        float_bytes=46_827_520,
        quantized_bytes=int(weights * bits / 8) + 180_000,
        macs=macs,
        bitops=sum(x.macs * x.weight_bits * x.activation_bits for x in found),
        seconds=194.2,
        command=f"isobit quantize resnet.py:net --data imagenet/val --target {target} --bits {bits} -o net.onnx",
    )


def bounded() -> RunRecord:
    """A run whose engine differs a little, for a known reason, with risks and float islands."""
    run = example(target="openvino-x86", engine="openvino", seed=1)
    base = run.certificates[0]
    first = Mismatch(op="Add", name="layer1.0.add", differ=61, total=401_408, largest=1.0,
                     rule="a stand-alone Add is computed in float32 by a formula that is not published")  # fmt: skip
    certificate = replace(
        base,
        engine_version="2026.4.1",
        verdict="bounded",
        cause="a stand-alone Add is off by at most one step",
        comparisons=(
            base.comparisons[0],
            Comparison(left="reference", right="openvino", equal=4_998_712, total=5_000_000, largest=2.0, first=first),
        ),
        float_islands=("layer4.1.add", "avgpool"),
        risks=(
            OverflowRisk(layer="layer1.0.conv1", kind="pair", channels=tuple(range(3, 33, 3)),
                         worst=64_770, limit=32_767),
            OverflowRisk(layer="fc", kind="accumulator", channels=(17,), worst=2_400_111_222, limit=2_147_483_647),
        ),
    )  # fmt: skip
    return replace(run, certificates=(certificate,))


def four() -> tuple[RunRecord, ...]:
    """Two targets × two bit widths: exact, exact, bounded and broken."""
    low = example(target="openvino-x86", engine="openvino", bits=4, seed=1)
    broken = replace(
        low.certificates[0],
        verdict="broken",
        cause="",
        comparisons=(Comparison(left="reference", right="openvino", equal=1_207_334, total=5_000_000, largest=40.0),),
    )
    return example(), example(bits=4), bounded(), replace(low, certificates=(broken,), latency=())


def bare() -> RunRecord:
    """The least that a record can hold."""
    return RunRecord(
        title="", network="net", target="fbgemm", target_source="", recipe={}, seed=0, versions={}, layers=(
            LayerRecord(name="fc", op="linear"),
            LayerRecord(name="conv", op="conv2d", tensors=(
                TensorRecord(name="conv.weight", role="weight", scheme="int8", bits=8, quant_min=-128, quant_max=127,
                             clip_low=-1.0, clip_high=1.0, scale=(), zero_point=()),)),
        ),
    )  # fmt: skip
