"""Whole networks: exported by PyTorch, imported again, compared with ONNX Runtime and with the network itself."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import isobit
from graph.from_onnx.exported import export
from graph.from_onnx.files import check, close, file, node, run
from isobit.benchmark.models import MODELS
from isobit.graph.capture import capture
from isobit.graph.convert import convert, hash_integers
from isobit.graph.deployed import IntegerWeight
from isobit.graph.from_onnx import load_onnx
from zoo import small_networks

NAMES = list(small_networks())
BOTH = [("dynamo", False), ("torchscript", True)]
REST = [("dynamo", True), ("torchscript", False), ("unfolded", False), ("unfolded", True)]
WAYS = [*BOTH, *(pytest.param(*way, marks=pytest.mark.slow) for way in REST)]
"""By which exporter, and whether for one sample only."""


def compared(net: nn.Module, example: tuple[torch.Tensor, ...], path: Path, *, fixed: bool) -> nn.Module:
    network = load_onnx(path)
    given = tuple(x[:1] if fixed else x for x in example)
    (wanted,) = run(path, [x.numpy() for x in given])
    with torch.no_grad():
        close(network(*given).numpy(), wanted)
        close(network(*example).numpy(), net(*example).numpy())  # at another batch size too, where the file had one
    return network


@pytest.mark.parametrize(("exporter", "fixed"), WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_network_comes_back(name: str, exporter: str, fixed: bool, tmp_path: Path) -> None:
    net, example = small_networks()[name]
    path = export(net, example, tmp_path / "net.onnx", exporter=exporter, fixed=fixed)
    capture(compared(net, example, path, fixed=fixed), example)


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_parameters_have_their_names_again(name: str, tmp_path: Path) -> None:
    net, example = small_networks()[name]
    network = load_onnx(export(net, example, tmp_path / "net.onnx", exporter="unfolded"))
    own, found = ({k: v for k, v in n.state_dict().items() if "num_batches" not in k} for n in (net, network))
    assert own.keys() == found.keys()
    assert all(torch.equal(own[k], found[k]) for k in own)


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("name", ["residual", "mlp", "convolution_1d"])
def test_older_versions_of_the_ops_are_converted(name: str, opset: int, tmp_path: Path) -> None:
    net, example = small_networks()[name]
    compared(
        net, example, export(net, example, tmp_path / "net.onnx", exporter="torchscript", opset=opset), fixed=False
    )


@pytest.mark.parametrize("name", ["vit", "residual"])
def test_new_versions_of_the_ops_are_read(name: str, tmp_path: Path) -> None:
    net, example = small_networks()[name]
    compared(net, example, export(net, example, tmp_path / "net.onnx", exporter="dynamo", opset=23), fixed=False)


@pytest.mark.parametrize(("name", "side"), [("squeezenet1_1", 64), ("mobilenet_v2", 64), ("tiny_resnet8", 32)])
def test_networks_of_the_zoo_come_back(name: str, side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = MODELS[name]().eval()
    example = (torch.randn(2, 3, side, side),)
    compared(net, example, export(net, example, tmp_path / "net.onnx", exporter="dynamo"), fixed=False)


@pytest.mark.parametrize("name", ["residual", "concat", "mlp", "vit"])
def test_the_integers_are_those_of_the_network_itself(name: str, tmp_path: Path) -> None:
    net, example = small_networks()[name]
    network = load_onnx(export(net, example, tmp_path / "net.onnx", exporter="unfolded"))
    torch.manual_seed(1)
    data = [tuple(torch.randn_like(x) for x in example) for _ in range(4)]
    models = [convert(isobit.quantize(n, data, target="onnxruntime-x86")) for n in (net, network)]
    own, found = ({k: m.q for k, m in model.named_modules() if isinstance(m, IntegerWeight)} for model in models)
    assert own.keys() == found.keys()
    assert all(torch.equal(own[k], found[k]) for k in own)
    if name in ("residual", "mlp"):  # all modules, so that activations have the same names too
        assert len({hash_integers(m) for m in models}) == 1


def test_an_imported_network_gets_a_certificate(tmp_path: Path) -> None:
    net, example = small_networks()["residual"]
    network = load_onnx(export(net, example, tmp_path / "float.onnx", exporter="torchscript", fixed=True))
    torch.manual_seed(1)
    data = [torch.randn(8, 3, 8, 8) for _ in range(4)]
    model = isobit.quantize(network, data, target="onnxruntime-x86")
    isobit.export(model, tmp_path / "net.onnx")
    assert isobit.verify(tmp_path / "net.onnx", model, data).verdict == "exact"


def test_an_imported_network_trains(tmp_path: Path) -> None:
    net, example = small_networks()["residual"]
    network = load_onnx(export(net, example, tmp_path / "net.onnx", exporter="unfolded"))
    model: Any = isobit.prepare(network, example, target="academic")
    isobit.calibrate(model, [example[0]])
    model.train()
    before = model.linear.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(*example).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, model.linear.weight)


def as_tensorflow_writes_it() -> onnx.ModelProto:
    """What tf2onnx makes of a small Keras network: images with channels last, SAME padding, Clip, MatMul and Add."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    nodes = [
        node("Transpose", "input", "net/conv/Conv2D__6:0", perm=[0, 3, 1, 2], name="net/conv/Conv2D__6"),
        node("Conv", "net/conv/Conv2D__6:0 w1 b1", "c1", auto_pad="SAME_UPPER", strides=[2, 2], name="net/conv/Conv2D"),
        node("Clip", "c1 zero six", "r1", name="net/relu6/Relu6"),
        node("Conv", "r1 w2 b2", "c2", pads=[0, 0, 1, 1], strides=[2, 2], group=8, name="net/depthwise/depthwise"),
        node("BatchNormalization", "c2 g b m v", "n2", name="net/bn/FusedBatchNormV3"),
        node("Relu", "n2", "r2", name="net/relu/Relu"),
        node("GlobalAveragePool", "r2", "p", name="net/pool/Mean"),
        node("Squeeze", "p axes", "s", name="net/pool/Mean_Squeeze"),
        node("MatMul", "s w3", "d", name="net/dense/MatMul"),
        node("Add", "d b3", "y", name="net/dense/BiasAdd"),
    ]
    constants = {
        "w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(8, 1, 3, 3), "b2": weights(8), "w3": weights(8, 5),
        "b3": weights(5), "zero": np.array(0, np.float32), "six": np.array(6, np.float32), "g": weights(8),
        "b": weights(8), "m": weights(8), "v": random.random(8).astype(np.float32) + 0.5,
        "axes": np.array([2, 3], np.int64),
    }  # fmt: skip
    return file(nodes, {"input": ("unk__7", 16, 16, 3)}, constants, opset=13)


def test_a_file_of_tensorflow_gets_a_certificate(tmp_path: Path) -> None:
    network = check(as_tensorflow_writes_it(), tmp_path, batches=(1, 3))
    assert {"net.conv.Conv2D", "net.depthwise.depthwise", "net.dense"} < {
        name for name, m in network.named_modules() if not list(m.children())
    }
    torch.manual_seed(0)
    data = [torch.rand(8, 16, 16, 3) for _ in range(4)]
    model = isobit.quantize(network, data, target="onnxruntime-x86")
    isobit.export(model, tmp_path / "quantized.onnx")
    assert isobit.verify(tmp_path / "quantized.onnx", model, data).verdict == "exact"
