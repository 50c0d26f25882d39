"""The referee on files of ONNX Runtime's own quantizer, and on one flaw at a time, each judged on the real engine."""

import html
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import isobit
from integer.graphs import QdqGraph, small_network
from isobit.core.arithmetic import FLOAT32
from isobit.core.errors import ArtifactError, EngineError, UnsupportedError
from isobit.core.onnx_file import read_onnx
from isobit.core.records import Certificate, from_json, to_json
from isobit.engines import ENGINES
from isobit.engines.onnxruntime import _explained
from isobit.export import export_float
from isobit.graph.capture import capture


class Tiny(nn.Module):
    """A residual, ReLU6, a mean over the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.linear = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.stem(x))
        return self.linear((x + self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    example = torch.rand(2, 3, 8, 8)
    path = tmp_path_factory.mktemp("referee") / "float.onnx"
    export_float(capture(Tiny().eval(), example), path, example=(example,))
    return path


def by_onnxruntime(float_file: Path, out: Path, **settings: Any) -> Path:
    """`quantize_static` with its defaults but for `settings`."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.left: Iterator[Any] = iter([{"x": rng.random((4, 3, 8, 8), dtype=np.float32)} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.left, None)

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a tool of its own
    try:
        quantization.quantize_static(str(float_file), str(out), Reader(), **settings)
    finally:
        logging.disable(before)
    return out


def kinds(**names: str) -> dict[str, Any]:
    quantization = pytest.importorskip("onnxruntime.quantization")
    return {key: quantization.QuantType[value] for key, value in names.items()}


def found(certificate: Certificate) -> dict[str, tuple[str, ...]]:
    return {f.problem: f.ops for f in certificate.findings}


def ops_of(certificate: Certificate, text: str) -> set[str]:
    return {op for problem, ops in found(certificate).items() if text in problem for op in ops}


def test_a_file_of_onnx_runtimes_quantizer(float_file: Path, tmp_path: Path) -> None:
    path = by_onnxruntime(
        float_file, tmp_path / "qdq.onnx", per_channel=True, **kinds(activation_type="QUInt8", weight_type="QInt8")
    )
    certificate = isobit.verify(path)
    assert (certificate.verdict, certificate.target, certificate.integers_sha256) == ("exact", "unknown", "")
    assert certificate.samples == 32
    graph = onnx.load(path).graph
    (mean,) = [n.name for n in graph.node if n.op_type == "ReduceMean"]
    assert ops_of(certificate, "ReduceMean") == {mean} == set(certificate.float_islands)
    convolutions = {n.name for n in graph.node if n.op_type == "Conv"}
    assert convolutions <= ops_of(certificate, "before VNNI")
    assert all(f.remedy for f in certificate.findings)
    assert from_json(Certificate, to_json(certificate)) == certificate
    assert f"finding: {mean}: in float: ReduceMean has no integer kernel. To change: write" in str(certificate)


def test_the_command_line_shows_the_findings(float_file: Path, tmp_path: Path) -> None:
    from cli.bad_input import invoke

    path = by_onnxruntime(
        float_file, tmp_path / "qdq.onnx", **kinds(activation_type="QUInt8", weight_type="QInt8")
    )  # fmt: skip
    result = invoke(f"verify {path}")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "target unknown" in text and "findings" in text and "GlobalAveragePool" in text


def test_analyze_judges_a_file_without_an_engine(float_file: Path, tmp_path: Path) -> None:
    """What it says from the file alone is what the engine then does."""
    from cli.bad_input import invoke

    path = by_onnxruntime(
        float_file, tmp_path / "qdq.onnx", per_channel=True, **kinds(activation_type="QUInt8", weight_type="QInt8")
    )
    said = json.loads(invoke(f"analyze {path} --json").stdout)
    assert said["float"] == {"ReduceMean": 1}
    assert said["integer"] == {"Conv": 2, "Add": 1, "Gemm": 1}
    assert said["findings"] == [to_json(f) for f in isobit.verify(path).findings]
    report = tmp_path / "judged.html"
    assert f"written{report}" in "".join(invoke(f"analyze {path} --report {report}").stdout.split())  # lines may break
    page = " ".join(html.unescape(re.sub(r"<[^>]*>", "", report.read_text())).split())
    for finding in said["findings"]:
        assert f"{finding['problem']}. To change: {finding['remedy']}. {', '.join(finding['ops'][:12])}" in page
    assert "Not verified" in page and "qdq.onnx" in page
    assert "in float 1 ReduceMean" in " ".join(invoke(f"analyze {path}").stdout.split())
    for command, code, says in (
        (f"analyze {path} -t tvm", 2, "--target is of use with a network"),
        (f"analyze {float_file}", 2, "nothing in it is quantized"),
        (f"analyze {tmp_path}/none.onnx", 6, "there is no file"),
        ("analyze cifar10_resnet20 -t tvm", 2, "--data"),
    ):
        result = invoke(command)
        assert (result.exit_code, says in result.stderr) == (code, True), result.stderr


def test_its_defaults_have_signed_activations(float_file: Path, tmp_path: Path) -> None:
    certificate = isobit.verify(by_onnxruntime(float_file, tmp_path / "defaults.onnx", per_channel=True))
    signed = ops_of(certificate, "signed bytes")
    assert signed == set(certificate.float_islands) - ops_of(certificate, "ReduceMean")


@pytest.mark.parametrize("between", [True, False])
def test_on_openvino_the_rounding_in_front_of_the_add_is_dropped(between: bool, tmp_path: Path) -> None:
    """Steps of 1 in front of the Add, of 0.5 behind it. A convolution that reads the residual itself stays alone."""
    if missing := ENGINES["openvino"]().missing():
        pytest.skip(missing)
    g = QdqGraph(0)
    a = g.qdq(g.conv(start(g), 3, 8), scale=0.1, zero_point=128)
    x = g.qdq(g.node("Relu", [g.conv(a, 8, 8, (1, 1))]), scale=0.5, zero_point=0) if between else a
    add = g.node("Add", [a, g.qdq(g.conv(x, 8, 8, (1, 1)), scale=1.0, zero_point=128)])
    g.output(g.qdq(add, scale=0.5, zero_point=128))
    certificate = isobit.verify(g.save(tmp_path / "net.onnx"), None, inputs(g), engine="openvino")
    assert certificate.verdict == "exact"  # the reference drops it too
    assert any(f.drops_rounding for f in certificate.findings) == between
    if between:
        assert ops_of(certificate, "openvino adds the residual inside the convolution") == {f"node_{add}"}


@pytest.mark.parametrize("signed", [False, True])
def test_quantized_operators_are_read_as_what_they_mean(signed: bool, float_file: Path, tmp_path: Path) -> None:
    from cli.bad_input import invoke

    quantization = pytest.importorskip("onnxruntime.quantization")
    types = kinds(activation_type="QInt8" if signed else "QUInt8", weight_type="QInt8")
    form = quantization.QuantFormat.QOperator
    path = by_onnxruntime(float_file, tmp_path / "q.onnx", per_channel=True, quant_format=form, **types)
    assert {"QLinearConv", "QLinearAdd", "QGemm"} <= {n.op_type for n in onnx.load(path).graph.node}
    certificate = isobit.verify(path)
    (mean,) = [n.name for n in onnx.load(path).graph.node if n.op_type == "ReduceMean"]
    assert (certificate.verdict, certificate.float_islands) == ("exact", (mean,))
    assert ops_of(certificate, "ReduceMean") == {mean}
    assert ops_of(certificate, "before VNNI") <= {n.name for n in onnx.load(path).graph.node}
    said = json.loads(invoke(f"analyze {path} --json").stdout)
    assert (said["float"], said["integer"]) == ({"ReduceMean": 1}, {"Conv": 2, "Add": 1, "Gemm": 1})


def test_a_float_file_has_nothing_to_judge(float_file: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing in it is quantized"):
        isobit.verify(float_file)


def flawed(change: Callable[[QdqGraph], str], **kind: Any) -> tuple[QdqGraph, str]:
    """A network with one flaw, and the name of its op."""
    g = QdqGraph(0, **kind)
    return g, f"node_{change(g)}"


def start(g: QdqGraph) -> str:
    return g.qdq(g.input("batch", 3, 8, 8))


def end(g: QdqGraph, tensor: str) -> str:
    g.output(g.qdq(tensor))
    return tensor


def half_quantized_add(g: QdqGraph) -> str:
    x = start(g)
    return end(g, g.node("Add", [g.qdq(g.conv(x, 3, 4)), g.node("Sin", [g.qdq(g.conv(x, 3, 4))])]))


def clip_inside(g: QdqGraph) -> str:
    conv = g.conv(start(g), 3, 4)
    limits = [g.constant("limit", np.float32(v)) for v in (0.0, 1.0)]
    g.output(g.qdq(g.node("Clip", [conv, *limits]), scale=0.05, zero_point=0))
    return conv


def no_quantizer_behind(g: QdqGraph) -> str:
    conv = g.conv(start(g), 3, 4)
    g.output(g.node("Sin", [conv]))
    return conv


def output_in_float(g: QdqGraph) -> str:
    conv = g.conv(start(g), 3, 4)
    g.output(conv)
    return conv


def read_before_rounding(g: QdqGraph) -> str:
    conv = g.conv(start(g), 3, 4)
    g.output(g.node("Add", [g.qdq(conv), conv]))
    return conv


def scales_of_channels(g: QdqGraph) -> str:
    x = g.input("batch", 3, 8, 8)
    names = [g.constant("scale", np.float32([0.01, 0.02, 0.03])), g.constant("zero", np.zeros(3, np.uint8))]
    q = g.node("QuantizeLinear", [x, *names], axis=1)
    w, _ = g.weight((3, 1, 3, 3))
    conv = g.node("Conv", [g.node("DequantizeLinear", [q, *names], axis=1), w], group=3)
    g.output(g.node("Sin", [conv]))
    return conv


def division(g: QdqGraph) -> str:
    return end(g, g.node("Div", [start(g), start_two(g)]))


def start_two(g: QdqGraph) -> str:
    return g.qdq(g.node("Exp", [g.constant("one", np.ones((1, 3, 8, 8), np.float32))]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (half_quantized_add, "Add input is not quantized"),
        (clip_inside, "a Clip clips inside the range of its quantizer"),
        (no_quantizer_behind, "no quantizer reads the result of this Conv"),
        (output_in_float, "an output of the file without a quantizer"),
        (read_before_rounding, "others read its result before it is rounded"),
        (scales_of_channels, "its input has a scale for each channel"),
        (division, "Div has no integer kernel"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_why_an_op_ran_in_float(change: Callable[[QdqGraph], str], says: str, tmp_path: Path) -> None:
    """The engine itself says that it did; the finding says why."""
    pytest.importorskip("onnxruntime")
    g, name = flawed(change)
    certificate = isobit.verify(g.save(tmp_path / "net.onnx"), None, inputs(g), engine="onnxruntime")
    assert name in certificate.float_islands
    assert name in ops_of(certificate, says)


def inputs(g: QdqGraph) -> list[Tensor]:
    return [torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))]


def test_biases_and_weights_that_are_not_as_an_engine_wants_them(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    g = QdqGraph(0)
    x = start(g)
    plain = g.qdq(g.conv(x, 3, 4))
    w, scale = g.weight((4, 4, 1, 1))
    float_bias = g.node("Conv", [plain, w, g.constant("bias", np.ones(4, np.float32))])
    a = g.qdq(float_bias)
    w, scale = g.weight((4, 4, 1, 1))
    other_scale = g.node("Conv", [a, w, g.bias(a, scale * np.float32(1.5), 4)])
    b = g.qdq(other_scale)
    w, scale = g.weight((4, 4, 1, 1))
    for name, value in g.constants.items():
        if name.startswith("weight_zero_point") and name == list(g.constants)[-1]:
            g.constants[name] = value + np.int8(3)
    asymmetric = g.node("Conv", [b, w])
    float_weight = g.node("Conv", [g.qdq(asymmetric), g.constant("w", np.ones((4, 4, 1, 1), np.float32))])
    g.output(g.qdq(float_weight))
    certificate = isobit.verify(g.save(tmp_path / "net.onnx"), None, inputs(g), engine="onnxruntime")
    assert ops_of(certificate, "bias is float") == {f"node_{float_bias}"}
    assert ops_of(certificate, "the scale of the bias is not s_x · s_w") == {f"node_{other_scale}"}
    assert ops_of(certificate, "weight is float") == {f"node_{float_weight}"}
    assert ops_of(certificate, "weights are asymmetric") == {f"node_{asymmetric}"}


def test_saturation_is_named_where_two_weights_can_saturate(tmp_path: Path) -> None:
    """u8 · s8 pairs: 255 · (64 + 64) = 32,640 fits 16 bits, 255 · (65 + 64) = 32,895 does not."""
    pytest.importorskip("onnxruntime")
    g = QdqGraph(0)
    x = start(g)
    layers = {}
    for name, values in (("fits", [64, 64, -64]), ("saturates", [65, 64, 0])):
        w, _ = g.weight((1, 3, 1, 1))
        weight = [n for n in g.constants if n.startswith("weight_") and g.constants[n].ndim == 4][-1]
        g.constants[weight] = np.int8(values).reshape(1, 3, 1, 1)
        layers[name] = g.node("Conv", [x, w])
        g.output(g.qdq(layers[name]))
    certificate = isobit.verify(g.save(tmp_path / "net.onnx"), None, inputs(g), engine="onnxruntime")
    assert ops_of(certificate, "before VNNI") == {f"node_{layers['saturates']}"}


def test_a_sound_file_has_no_findings(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    g = small_network()
    for name, value in g.constants.items():  # 7 bits: nothing can saturate
        if value.dtype == np.int8 and value.ndim > 1:
            g.constants[name] = (value // 2).astype(np.int8)
    certificate = isobit.verify(g.save(tmp_path / "net.onnx"), engine="onnxruntime")
    assert (certificate.verdict, certificate.findings) == ("exact", ())


def test_nodes_in_any_order_are_sorted(tmp_path: Path) -> None:
    """As AMD Quark writes them; ONNX Runtime takes such files too."""
    pytest.importorskip("onnxruntime")
    g = small_network()
    onnx.save(g.model(), tmp_path / "sorted.onnx")
    model = g.model()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])
    onnx.save(model, tmp_path / "net.onnx")
    assert [n.name for n in read_onnx(tmp_path / "net.onnx").graph.node] != [n.name for n in model.graph.node]
    one, other = (isobit.verify(tmp_path / name) for name in ("net.onnx", "sorted.onnx"))
    assert (one.verdict, one.findings) == (other.verdict, other.findings) == ("exact", one.findings)


def test_float_weights_behind_a_quantizer_are_rounded_as_the_engine_does(tmp_path: Path) -> None:
    """As NVIDIA ModelOpt writes them: QuantizeLinear and DequantizeLinear of a float constant, scales per channel."""
    pytest.importorskip("onnxruntime")
    g = QdqGraph(0)
    x = start(g)
    scale = g.rng.uniform(0.002, 0.02, 8).astype(np.float32)
    w = g.constant(
        "weight", (g.rng.integers(-254, 255, (8, 3, 3, 3)) / 2 * scale.reshape(8, 1, 1, 1)).astype(np.float32)
    )
    names = [g.constant("scale", scale), g.constant("zero_point", np.zeros(8, np.int8))]
    q = g.node("QuantizeLinear", [w, *names], axis=0)
    y = g.node("Conv", [x, g.node("DequantizeLinear", [q, *names], axis=0), g.bias(x, scale, 8)])
    g.output(g.qdq(y, scale=0.1))
    certificate = isobit.verify(g.save(tmp_path / "net.onnx"), None, inputs(g), engine="onnxruntime")
    assert (certificate.verdict, certificate.float_islands) == ("exact", ())


def test_float16_between_quantizers_is_refused(tmp_path: Path) -> None:
    g = QdqGraph(0)
    x = g.node("Cast", [g.input("batch", 3, 8, 8)], to=onnx.TensorProto.FLOAT16)
    names = [g.constant("scale", np.float16(0.02)), g.constant("zero_point", np.int8(0))]
    y = g.node("DequantizeLinear", [g.node("QuantizeLinear", [x, *names]), *names])
    g.output(g.node("Cast", [y], to=onnx.TensorProto.FLOAT))
    with pytest.raises(UnsupportedError, match="computes in float16 between its quantizers"):
        isobit.verify(g.save(tmp_path / "net.onnx"), None, inputs(g), engine="onnxruntime")


def test_sixteen_bits_are_no_signed_bytes(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    g = QdqGraph(0, dtype=np.int16)
    conv = end(g, g.conv(start(g), 3, 4))
    certificate = isobit.verify(g.save(tmp_path / "net.onnx"), None, inputs(g), engine="onnxruntime")
    assert ops_of(certificate, "its activations have 16 bits") == {f"node_{conv}"} == set(certificate.float_islands)


def test_a_refusal_of_onnx_runtime_says_what_to_do(tmp_path: Path) -> None:
    """Signed activations through a Slice, as ModelOpt places them: version 1.31 refuses its own rewriting."""
    pytest.importorskip("onnxruntime")
    error = _explained(EngineError("a: output_dtype INT8 does not match y_zero_point type UINT8"))
    assert "quantize with unsigned activations" in str(error)
    other = EngineError("anything else")
    assert _explained(other) is other


def test_a_file_with_a_fixed_batch(float_file: Path, tmp_path: Path) -> None:
    path = by_onnxruntime(
        float_file, tmp_path / "qdq.onnx", per_channel=True, **kinds(activation_type="QUInt8", weight_type="QInt8")
    )
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, path)
    assert isobit.verify(path).samples == 33
    assert FLOAT32.adds_in_convolution is False
    assert all(numpy_helper.to_array(t).dtype != np.float64 for t in model.graph.initializer)
