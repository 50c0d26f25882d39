"""The referee on LiteRT files: one flaw at a time, judged on the real engine, and what the command line says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import isobit
from integer.litert_files import Network
from isobit.analysis.referee_litert import counted, judge_litert
from isobit.core.errors import ArtifactError
from isobit.core.records import Certificate, from_json, to_json
from isobit.engines import LiteRt

pytestmark = pytest.mark.skipif(bool(LiteRt().missing()), reason=LiteRt().missing() or "installed")

PLAIN = {"padding": 0, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}


def sound(n: Network) -> int:
    x = n.input(1, 8, 8, 3)
    return n.op("MAX_POOL_2D", [n.conv(x, (3, 4), (1, 8, 8, 4))], (1, 4, 4, 4), grid=(0.2, -100), **_window())


def _window() -> dict[str, int]:
    return {"strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}


def left_out(n: Network) -> int:
    x = n.input(1, 8, 8, 3)
    y = n.op("DEQUANTIZE", [n.conv(x, (3, 4), (1, 8, 8, 4))], (1, 8, 8, 4), dtype=np.float32)
    y = n.op("TANH", [y], (1, 8, 8, 4), dtype=np.float32, version=1)
    return n.op("QUANTIZE", [y], (1, 8, 8, 4), grid=(0.05, 0))


def rescaled(n: Network) -> int:
    x = n.input(1, 8, grid=(0.05, 3))
    return n.op("QUANTIZE", [x], (1, 8), grid=(0.07, -4))


def leaky(n: Network) -> int:
    return n.op("LEAKY_RELU", [n.input(1, 8)], (1, 8), alpha=0.1)


def one_scale(n: Network) -> int:
    x = n.input(1, 4, 4, 6)
    w, scale = n.weight((1, 3, 3, 6), axis=None)
    bias = n.constant(np.zeros(6, np.int32), np.float32(n.grids[x][0]) * scale)
    return n.op("DEPTHWISE_CONV_2D", [x, w, bias], (1, 4, 4, 6), version=3, depthMultiplier=1, **PLAIN)


def lowest_weight(n: Network) -> int:
    y = sound(n)
    weight = n.builder.model.buffers[n.builder.graph.tensors[1].buffer]
    weight.data = np.concatenate([weight.data[:-1], np.array([128], np.uint8)])  # -128
    return y


def other_bias_scale(n: Network) -> int:
    y = sound(n)
    bias = next(t for t in n.builder.graph.tensors if t.type == 2)
    bias.quantization.scale = bias.quantization.scale * np.float32(1.01)
    return y


def cut_off_bias(n: Network) -> int:
    y = sound(n)
    bias = next(t for t in n.builder.graph.tensors if t.type == 2)
    data = np.array([(1 << 31) - 1, 0, 0, 0], np.int32)
    n.builder.model.buffers[bias.buffer].data = np.frombuffer(data.tobytes(), np.uint8)
    return y


def sixteen_bits(n: Network) -> int:
    a, b = (n.input(1, 8, grid=(0.001, 0), dtype=np.int16) for _ in range(2))
    return n.op("MUL", [a, b], (1, 8), grid=(0.002, 0), dtype=np.int16, version=4)


FLAWS: list[tuple[Callable[[Network], int], str]] = [
    (left_out, "in float: TANH was left out, and what it reads is dequantized for it"),
    (rescaled, "rounds integers of one scale to another"),
    (leaky, "LEAKY_RELU on bytes"),
    (one_scale, "one scale for all channels of a DEPTHWISE_CONV_2D weight"),
    (lowest_weight, "a weight is -128"),
    (other_bias_scale, "the scale of the bias is not s_x · s_w"),
    (cut_off_bias, "a bias is at the end of 32 bits"),
    (sixteen_bits, "its activations have 16 bits"),
]


@pytest.mark.parametrize(("flaw", "says"), FLAWS, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_found_is_the_flaw_alone(flaw: Callable[[Network], int], says: str, tmp_path: Path) -> None:
    n = Network()
    path = n.save(tmp_path / "net.tflite", flaw(n))
    (finding,) = judge_litert(path)
    assert finding.problem.startswith(says) and finding.remedy and len(finding.ops) == 1
    certificate = isobit.verify(path)
    assert certificate.findings == (finding,)
    assert certificate.float_islands == (finding.ops if "in float" in says else ())
    assert from_json(Certificate, to_json(certificate)) == certificate


@pytest.mark.parametrize("engine", ["litert", "litert-reference"])
def test_a_sound_file_is_exact_and_has_no_findings(engine: str, tmp_path: Path) -> None:
    n = Network()
    certificate = isobit.verify(n.save(tmp_path / "net.tflite", sound(n)), engine=engine)
    assert (certificate.verdict, certificate.findings, certificate.target) == ("exact", (), "unknown")
    assert (certificate.samples, certificate.float_islands) == (32, ())


def hybrid(n: Network) -> int:
    """A float input, a weight of bytes: dynamic-range quantization."""
    x = n.tensor((1, 8), None, np.float32)
    n.inputs.append(x)
    w, _ = n.weight((4, 8), axis=None)
    return n.op("FULLY_CONNECTED", [x, w, -1], (1, 4), dtype=np.float32, version=3)


def test_weights_alone_are_bounded_and_the_cause_is_named(tmp_path: Path) -> None:
    n = Network()
    path = n.save(tmp_path / "net.tflite", hybrid(n))
    images = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
    certificate = isobit.verify(path, None, [images])
    assert certificate.verdict == "bounded"
    assert certificate.cause.startswith("its weight alone is integers: LiteRT rounds the activations anew")
    assert [f.drops_rounding for f in certificate.findings] == [True]
    with pytest.raises(ArtifactError, match="no quantizer with one range reads the input 't0': give data"):
        isobit.verify(path)


def test_weights_that_are_made_float_again(tmp_path: Path) -> None:
    """Weight-only quantization: a DEQUANTIZE of a constant in front of the op."""
    n = Network()
    x = n.tensor((1, 8), None, np.float32)
    n.inputs.append(x)
    w, _ = n.weight((4, 8))
    floats = n.op("DEQUANTIZE", [w], (4, 8), dtype=np.float32, version=6)
    path = n.save(
        tmp_path / "net.tflite", n.op("FULLY_CONNECTED", [x, floats, -1], (1, 4), dtype=np.float32, version=1)
    )
    (finding,) = judge_litert(path)
    assert finding.problem == "in float: its weight alone was made smaller, and is made float again"
    assert isobit.verify(path, None, [torch.rand(16, 8)]).verdict in ("exact", "bounded")


def test_analyze_counts_and_judges_without_an_engine(tmp_path: Path) -> None:
    from cli.bad_input import invoke

    n = Network()
    path = n.save(tmp_path / "net.tflite", left_out(n))
    assert counted(path) == ({"CONV_2D": 1}, {"TANH": 1})
    said = json.loads(invoke(f"analyze {path} --json").stdout)
    assert (said["integer"], said["float"]) == ({"CONV_2D": 1}, {"TANH": 1})
    assert said["findings"] == [to_json(f) for f in isobit.verify(path).findings]
    assert "in float 1 TANH" in " ".join(invoke(f"analyze {path}").stdout.split())
    assert invoke(f"verify {path} --engine litert-reference").exit_code == 0
    n = Network()
    x = n.tensor((1, 8), None, np.float32)
    n.inputs.append(x)
    path = n.save(tmp_path / "float.tflite", n.op("TANH", [x], (1, 8), dtype=np.float32, version=1))
    for command in (f"analyze {path}", f"verify {path}"):
        result = invoke(command)
        assert (result.exit_code, "nothing in it is quantized" in result.stderr) == (6, True), result.stderr
