"""Segments: where a graph is cut, and that its parts in a row are the whole."""

import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms.activation_cache import execute
from isobit.benchmark.models import MODELS
from isobit.graph.segments import Unit, segments
from zoo import small_networks


def prepared(net: nn.Module, inputs: tuple[Tensor, ...], target: str = "openvino-cpu") -> fx.GraphModule:
    return isobit.prepare(net.eval(), inputs, target=target, bits=4).eval()


@pytest.mark.parametrize("target", ["openvino-cpu", "academic", "onnxruntime-x86"])
@pytest.mark.parametrize("unit", ["layer", "block"])
@pytest.mark.parametrize("network", small_networks())
def test_the_parts_in_a_row_are_the_whole(network: str, unit: Unit, target: str) -> None:
    net, inputs = small_networks()[network]
    model = prepared(net, inputs, target)
    parts = segments(model, unit)
    values = dict(zip([n for n in model.graph.nodes if n.op == "placeholder"], inputs, strict=True))
    seen: list[fx.Node] = []
    with torch.no_grad():
        for part in parts:
            assert part.layers
            assert part.result in part.outputs
            assert set(part.inputs) <= set(values)
            found = execute(model, part.nodes, {n: values[n] for n in part.inputs})
            values |= {n: found[n] for n in part.outputs}
            seen += part.nodes
        expected = model(*inputs)
    assert seen == [n for n in model.graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    (output,) = (n for n in model.graph.nodes if n.op == "output")
    for node, value in zip(output.all_input_nodes, torch.utils._pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(values[node], value, rtol=0, atol=0)


def names(network: str, unit: Unit, target: str = "openvino-cpu") -> list[str]:
    size = 32 if network.startswith("cifar") else 64
    model = prepared(MODELS[network](), (torch.randn(2, 3, size, size),), target)
    return [part.name for part in segments(model, unit)]


@pytest.mark.parametrize("target", ["openvino-cpu", "academic", "tensorrt"])
def test_blocks_of_a_residual_network(target: str) -> None:
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)]
    assert names("cifar10_resnet20", "block", target) == ["conv1", *blocks, "linear"]


def test_blocks_of_inverted_residuals_and_fire_modules() -> None:
    found = names("mobilenet_v2_folded", "block")
    assert len(found) == 20
    assert found[:3] == ["features.0.0", "features.1.conv", "features.2.conv"]
    assert found[-2:] == ["features.18.0", "classifier.1"]
    assert names("squeezenet1_1", "block")[:3] == ["features.0", "features.3", "features.4"]


def test_each_layer_is_a_segment_with_its_activation() -> None:
    model = prepared(MODELS["cifar10_resnet20"](), (torch.randn(2, 3, 32, 32),))
    parts = segments(model, "layer")
    assert [part.layers for part in parts] == [(part.name,) for part in parts]
    assert len(parts) == 20
    assert parts[1].result.name == "activation_slots_layer1_0_relu1"
    assert parts[2].result.name == "layer1_0_conv2"  # an add is behind it, which reads another tensor too


def test_a_layer_that_is_called_twice_is_in_no_segment_by_itself() -> None:
    net, inputs = small_networks()["shared"]
    model = prepared(net, inputs)
    calls = [str(n.target) for n in model.graph.nodes if n.op == "call_module"]
    twice = {name for name in calls if calls.count(name) > 1}
    assert twice
    assert not twice & {layer for part in segments(model, "layer") for layer in part.layers}
