"""PT2E programs as QDQ graphs: against PyTorch's own results for many ops, and against the graph they were made of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from integer.graphs import QdqGraph, small_network
from isobit.core.arithmetic import EXECUTORCH, FLOAT32, INDUCTOR
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.pt2_file import read_pt2
from isobit.export.pt2e import translate
from isobit.integer import quantized_tensors, run_reference
from isobit.integer.files import format_of, load_qdq, metadata_of
from isobit.integer.pt2e import qdq_of_pt2
from pt2 import changed


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


WEIGHT = torch.linspace(-1, 1, 4 * 3 * 3 * 3).reshape(4, 3, 3, 3)
MATRIX = torch.linspace(-1, 1, 5 * 8).reshape(5, 8)
TURNED = MATRIX.T.contiguous()
NUMBERS, ONES = torch.arange(24.0), torch.ones(3)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "conv": lambda x: F.conv2d(x, WEIGHT, stride=2, padding=1),
    "one number for all axes": lambda x: F.max_pool2d(x, 3, 2, 1),
    "ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average": lambda x: F.avg_pool2d(x, 2, 2, 1, count_include_pad=False),
    "transposed": lambda x: F.conv_transpose2d(x, WEIGHT[:3], stride=2, padding=1, output_padding=1),
    "one dimension": lambda x: F.conv1d(x[:, :, 0], WEIGHT[:, :, 0], dilation=2),
    "linear": lambda x: F.linear(x, MATRIX, NUMBERS[:5]),
    "matmul": lambda x: x @ TURNED,
    "activations": lambda x: F.hardswish(x) + F.silu(x) * F.hardsigmoid(x) - torch.sigmoid(x).tanh(),
    "clips": lambda x: F.relu6(x) + x.clamp(-0.5, 0.25) + F.hardtanh(x) + x.clamp(max=0.1) + F.leaky_relu(x, 0.1),
    "gelu": lambda x: F.gelu(x) / F.gelu(x, approximate="tanh").clamp(min=1),
    "numbers": lambda x: (x * 2 + 1) / 3,
    "means": lambda x: x.mean((2, 3), keepdim=True) + x.mean(1, keepdim=True) + F.adaptive_avg_pool2d(x, 1),
    "moves": lambda x: x.transpose(1, 2).permute(0, 3, 1, 2).reshape(-1, 8, 24).flatten(1).unsqueeze(1).squeeze(1),
    "slices": lambda x: torch.cat([x[:, :, 1:-1:2], x[:, :, -3:]], 2)[..., 3],
    "padding": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "norms": lambda x: F.layer_norm(x, (8,)) + F.batch_norm(x, NUMBERS[:3], ONES, ONES, ONES),
    "choices": lambda x: torch.where(torch.isnan(x), 0.5 * x, torch.minimum(x, x * 2)),
    "softmax": lambda x: F.softmax(torch.erf(x) + torch.sqrt(x * x), -1),
    "embedding": lambda x: F.embedding((x[:, 0, 0] * 2).clamp(0, 4).to(torch.int64), MATRIX),
    "spread": lambda x: x + NUMBERS.reshape(1, 3, 1, 8).expand(x.shape[0], 3, 1, 8),
    "the same": lambda x: F.dropout(x.clone().contiguous().detach(), training=False).relu(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_op_reads_as_pytorch_computes_it(name: str, tmp_path: Path) -> None:
    """PyTorch saves the program, and ONNX's own evaluator runs what isobit reads."""
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8)
    program = torch.export.export(Function(FUNCTIONS[name]), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "net.pt2")
    model = qdq_of_pt2(tmp_path / "net.pt2")
    onnx.checker.check_model(model, full_check=True)
    x = torch.randn(5, 3, 8, 8)
    (found,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(np.asarray(found)), FUNCTIONS[name](x), rtol=1e-5, atol=1e-5)


def graphs() -> dict[str, QdqGraph]:
    found = {"convolutions": small_network()}
    g = QdqGraph(1, dtype=np.int8, zero_point=3)
    x = g.qdq(g.input("batch", 3, 8, 8))
    padded = g.qdq(g.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), like=x)
    g.output(g.qdq(g.node("Add", [padded, padded])))
    return found | {"signed bytes": g}


@pytest.mark.parametrize("arithmetic", [FLOAT32, EXECUTORCH, INDUCTOR], ids=["float32", "executorch", "inductor"])
@pytest.mark.parametrize("name", graphs())
def test_the_graph_comes_back(name: str, arithmetic: object, tmp_path: Path) -> None:
    """Written as PT2E and read again, the reference computes the same integers by any rule."""
    source = onnx.load(graphs()[name].save(tmp_path / "net.onnx"))
    path = tmp_path / "net.pt2"
    path.write_bytes(translate(source, {"isobit.integers_sha256": "known"}))
    back = load_qdq(path)
    assert format_of(path) == "pt2e"
    assert metadata_of(back)["isobit.integers_sha256"] == "known"
    (shape,) = [[d.dim_value or 4 for d in v.type.tensor_type.shape.dim] for v in source.graph.input]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    one, other = (run_reference(model, [x], arithmetic) for model in (source, back))  # type: ignore[arg-type]
    np.testing.assert_array_equal(one.outputs[0], other.outputs[0])
    for a, b in zip(quantized_tensors(source), quantized_tensors(back), strict=True):
        np.testing.assert_array_equal(one.integers[a], other.integers[b])


def test_fewer_levels_than_a_byte_has(tmp_path: Path) -> None:
    """A Clip of the integers becomes the op's limits, and these a Clip in front of the quantizer."""
    g = QdqGraph(2)
    g.output(g.qdq(g.input("batch", 64), scale=0.1, zero_point=7, clip=(0, 15)))
    source = onnx.load(g.save(tmp_path / "net.onnx"))
    path = tmp_path / "net.pt2"
    path.write_bytes(translate(source, {}))
    (call,) = [
        c for c in read_pt2(path).calls if c.target.endswith("quantize_per_tensor.default") and "input" in c.arguments
    ][:1]
    assert (call.arguments["quant_min"], call.arguments["quant_max"]) == (0, 15)
    x = np.linspace(-3, 3, 128, dtype=np.float32).reshape(2, 64)
    expected = run_reference(source, [x]).outputs[0]
    np.testing.assert_array_equal(run_reference(load_qdq(path), [x]).outputs[0], expected)
    assert len(np.unique(expected)) == 16


def test_a_bias_off_the_grid_stays_float(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(translate(onnx.load(small_network().save(tmp_path / "net.onnx")), {}))
    program = read_pt2(path)
    exact = {t.name for t in qdq_of_pt2(program).graph.initializer if t.data_type == onnx.TensorProto.INT32}
    assert exact
    name = next(name for name in program.constants if name.endswith("bias"))
    program.constants[name] = program.constants[name] * 1.001 + 1e-4
    less = {t.name for t in qdq_of_pt2(program).graph.initializer if t.data_type == onnx.TensorProto.INT32}
    assert len(exact - less) == 2  # the integers and their zero points


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path, other = tmp_path / "net.pt2", tmp_path / "other.pt2"
    path.write_bytes(translate(onnx.load(small_network().save(tmp_path / "net.onnx")), {}))

    def with_scale(
        content: dict[str, dict[str, dict[str, list[dict[str, list[dict[str, dict[str, float]]]]]]]],
    ) -> None:
        content["graph_module"]["graph"]["nodes"][0]["inputs"][1]["arg"] = {"as_float": -1.0}

    other.write_bytes(changed(path, with_scale))
    with pytest.raises((ArtifactError, UnsupportedError), match="scale"):
        qdq_of_pt2(other)
    program = torch.export.export(
        Function(lambda x: F.avg_pool2d(x, 2, divisor_override=3)), (torch.randn(2, 3, 8, 8),)
    )
    torch.export.save(program, path)
    with pytest.raises(UnsupportedError, match="divisor"):
        qdq_of_pt2(path)
    program = torch.export.export(Function(torch.sin), (torch.randn(2, 3),))
    torch.export.save(program, path)
    with pytest.raises(UnsupportedError, match=r"does not know the op aten\.sin\.default"):
        load_qdq(path)
