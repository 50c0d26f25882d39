"""What an exported file holds, beside what the contract of exporters checks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import isobit
from isobit.core.errors import OutputError, UnsupportedError
from isobit.engines import OnnxRuntime
from zoo import small_networks

needs_onnxruntime = pytest.mark.skipif(bool(OnnxRuntime().missing()), reason=OnnxRuntime().missing())


def seeded(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@needs_onnxruntime
def test_linear_layers_of_three_dimensions_run_as_integer_gemms(tmp_path: Path) -> None:
    net = seeded(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    x = torch.randn(4, 5, 8)
    model = isobit.quantize(net, [x], target="onnxruntime-x86")
    isobit.export(model, tmp_path / "net.onnx")
    session = OnnxRuntime().load(tmp_path / "net.onnx")
    assert [(k.precision, k.count) for k in session.kernels() if k.name == "QGemm"] == [("uint8", 2)]
    assert session.float_islands() == ()
    assert isobit.verify(tmp_path / "net.onnx", model, [x]).verdict == "exact"


def test_an_uneven_zero_padding_moves_into_the_convolution(tmp_path: Path) -> None:
    net = seeded(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()))
    model = isobit.quantize(net, [torch.randn(4, 3, 8, 8)], target="onnxruntime-x86")
    isobit.export(model, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    conv = next(n for n in graph.node if n.op_type == "Conv")
    assert "Pad" not in operators(tmp_path / "net.onnx")
    assert list(next(a.ints for a in conv.attribute if a.name == "pads")) == [0, 0, 1, 1]


@needs_onnxruntime
def test_rows_and_columns_are_thinned_out_by_one_op(tmp_path: Path) -> None:
    class Thinned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(torch.relu(self.first(x))[:, :, ::2, 1::2])
            return y

    net, x = seeded(Thinned()), torch.randn(4, 3, 12, 12)
    model = isobit.quantize(net, [x], target="onnxruntime-x86")
    isobit.export(model, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    (cut,) = (n for n in graph.node if n.op_type == "Slice")
    constants = {t.name: numpy_helper.to_array(t).tolist() for t in graph.initializer}
    assert [constants[name] for name in cut.input[1:]][0::2] == [[0, 1], [2, 3]]
    assert constants[cut.input[4]] == [2, 2]
    assert isobit.verify(tmp_path / "net.onnx", model, [x]).verdict == "exact"


def test_what_follows_a_linear_layer_on_tokens_stands_before_the_reshape(tmp_path: Path) -> None:
    """An engine fuses an activation and a quantizer only with the layer right in front of them."""
    net = seeded(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 4)))
    x = torch.randn(4, 5, 8)
    model = isobit.quantize(net, [x], target="openvino-cpu")
    isobit.export(model, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    readers = {name: n for n in graph.node for name in n.input}
    chains = []
    for gemm in (n for n in graph.node if n.op_type == "Gemm"):
        chain = [gemm]
        while (following := readers[chain[-1].output[0]]).op_type != "Reshape":
            chain.append(following)
        chains.append([n.op_type for n in chain])
    quantized = ["QuantizeLinear", "DequantizeLinear"]
    assert chains == [["Gemm", "Gelu", *quantized], ["Gemm", "Relu", *quantized], ["Gemm"]]
    onnx.checker.check_model(tmp_path / "net.onnx", full_check=True)
    assert [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output] == [
        ["batch", 5, 4]
    ]


def test_an_output_that_is_quantized_keeps_its_name_behind_the_reshape(tmp_path: Path) -> None:
    net = seeded(nn.Sequential(nn.Linear(8, 4)))
    x = torch.randn(4, 5, 8)
    model = isobit.quantize(net, [x], target="qnn-htp")
    isobit.export(model, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [n.op_type for n in graph.node][-4:] == ["Gemm", "QuantizeLinear", "DequantizeLinear", "Reshape"]
    assert graph.node[-1].output[0] == graph.output[0].name
    onnx.checker.check_model(tmp_path / "net.onnx", full_check=True)


def test_the_batch_is_read_from_all_sizes(tmp_path: Path) -> None:
    """Shape, times (1, 0, 0, 0), its first: no Shape of the first size alone, of which OpenVINO takes a wrong one."""
    net, (x,) = small_networks()["vit"]
    model = isobit.quantize(net, [x], target="onnxruntime-x86")
    isobit.export(model, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    shapes = [n for n in graph.node if n.op_type == "Shape"]
    assert shapes and not any(a.name == "end" for n in shapes for a in n.attribute)
    constants = {t.name: numpy_helper.to_array(t).tolist() for t in graph.initializer}
    masks = [n for n in graph.node if n.op_type == "Mul" and n.input[0] == shapes[0].output[0]]
    assert [constants[n.input[1]] for n in masks] == [[1, 0, 0, 0]]
    onnx.checker.check_model(tmp_path / "net.onnx", full_check=True)


def test_few_bits_are_clipped_on_the_integers(tmp_path: Path) -> None:
    net = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    model = isobit.quantize(net, [torch.randn(4, 3, 8, 8)], target="onnxruntime-x86", bits=4)
    isobit.export(model, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    constants |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    clips = [n for n in graph.node if n.op_type == "Clip"]
    makers = {name: n for n in graph.node for name in n.output}
    assert clips
    assert all(makers[n.input[0]].op_type == "QuantizeLinear" for n in clips)
    assert all((int(constants[n.input[1]]), int(constants[n.input[2]])) == (0, 15) for n in clips)


def test_signed_activations_behind_a_relu_start_at_level_zero(tmp_path: Path) -> None:
    """A symmetric signed format uses 0..127 behind a ReLU: stored as bytes whose lowest level is 0."""
    net = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    model = isobit.quantize(net, [torch.randn(4, 3, 8, 8)], target="tensorrt")
    isobit.export(model, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    quantizers = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    assert [int(constants[n.input[2]]) for n in quantizers] == [128, 0]
    assert all(constants[n.input[2]].dtype == np.uint8 for n in quantizers)


@needs_onnxruntime
def test_dynamic_ranges_are_those_of_each_batch(tmp_path: Path) -> None:
    net = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    model = isobit.quantize(net, [torch.randn(8, 6)], target="onnxruntime-x86", activation_quantizer="dynamic")
    isobit.export(model, tmp_path / "net.onnx")
    session = OnnxRuntime(optimize=False).load(tmp_path / "net.onnx")
    for size in (1.0, 100.0):
        x = torch.randn(5, 6) * size
        with torch.no_grad():
            expected = model(x).numpy()
        np.testing.assert_allclose(session.run([x.numpy()])[0], expected, rtol=0, atol=0.03 * np.abs(expected).max())


def test_dynamic_ranges_of_another_format_are_refused(tmp_path: Path) -> None:
    net = seeded(nn.Sequential(nn.Linear(6, 8)))
    model = isobit.quantize(net, [torch.randn(8, 6)], target="tensorrt", activation_quantizer="dynamic")
    with pytest.raises(UnsupportedError, match="dynamic ranges as unsigned asymmetric bytes"):
        isobit.export(model, tmp_path / "net.onnx")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    model = isobit.quantize(seeded(nn.Sequential(nn.Linear(6, 8))), [torch.randn(8, 6)], target="tensorrt")
    with pytest.raises(OutputError, match="there is no folder"):
        isobit.export(model, tmp_path / "missing" / "net.onnx")


def test_the_file_names_layers_as_the_user_does_and_nothing_of_the_machine(tmp_path: Path) -> None:
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 4, 3))
    net.add_module("head", nn.Conv2d(4, 2, 1))
    model = isobit.quantize(seeded(net), [torch.randn(4, 3, 8, 8)], target="onnxruntime-x86")
    isobit.export(model, tmp_path / "net.onnx")
    file = onnx.load(tmp_path / "net.onnx")
    assert [n.name for n in file.graph.node if n.op_type == "Conv"] == ["stem", "head"]
    assert not any(n.metadata_props for n in file.graph.node)
    assert {p.key for p in file.metadata_props} >= {"isobit.version", "isobit.target", "isobit.integers_sha256"}
