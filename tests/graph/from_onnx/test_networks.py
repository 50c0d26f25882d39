"""Whole networks: exported by PyTorch, imported again, compared with ONNX Runtime and with the network itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import isobit
from graph.from_onnx.exported import export
from graph.from_onnx.files import close, run
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
