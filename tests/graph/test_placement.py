"""Placement on networks small enough to say by hand what belongs where."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from isobit.core.errors import UnknownNameError, UnsupportedError
from isobit.core.granularity import PerGroup
from isobit.core.scheme import Scheme
from isobit.graph.capture import capture
from isobit.graph.placement import Plan, place
from isobit.graph.rules import Rules
from isobit.targets import TARGETS
from zoo import small_networks

IMAGE = torch.randn(2, 3, 8, 8)


def plan(net: nn.Module, target: str, rules: Rules | None = None, x: Tensor = IMAGE, **bits: int) -> Plan:
    return place(capture(net.eval(), x, check=False), TARGETS[target].with_bits(**bits), rules)


def points(found: Plan) -> list[str]:
    return [p.name for p in found.activations]


class Block(nn.Module):
    """A residual block with a projected shortcut, which is computed first or last and added left or right."""

    def __init__(self, *, first: bool = False, left: bool = False, identity: bool = False) -> None:
        super().__init__()
        self.first, self.left, self.identity = first, left, identity
        self.stem, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.conv, self.shortcut = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.act, self.last = nn.ReLU(), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        short = self.shortcut(x) if self.first else None
        y = self.conv(x)
        short = x if self.identity else self.shortcut(x) if short is None else short
        return self.last(self.act(short + y if self.left else y + short))


@pytest.mark.parametrize("first", [False, True])
def test_the_three_graphs(first: bool) -> None:
    """MQBench figure 4, whichever branch is computed first."""
    expected = {
        "ascend": {"x", "relu", "act"},
        "tensorrt": {"x", "relu", "shortcut", "act"},
        "snpe": {"x", "relu", "conv", "shortcut", "act"},
        "onnxruntime-x86": {"x", "relu", "conv", "shortcut", "act", "last"},
    }
    for target, names in expected.items():
        assert set(points(plan(Block(first=first), target))) == names, target


def test_what_float_ops_alone_read_is_rounded_unless_the_target_hands_it_on() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.gelu(self.first(x).permute(0, 1, 3, 2))
            z = self.second(y)
            out: Tensor = self.last(nn.functional.gelu(z) + z)
            return out

    assert points(plan(Net(), "onnxruntime-x86")) == ["x", "first", "gelu", "second", "gelu:2", "add", "last"]
    assert points(plan(Net(), "openvino-cpu")) == ["x", "gelu", "second", "gelu:2", "add"]


def test_the_fused_operand_of_an_add() -> None:
    assert "conv" not in points(plan(Block(identity=True), "tensorrt"))
    assert "conv" not in points(plan(Block(identity=True, left=True), "tensorrt"))  # the only candidate
    assert {"conv", "shortcut"} & set(points(plan(Block(left=True), "tensorrt"))) == {"conv"}


def test_a_residual_stays_in_float_in_graph_1() -> None:
    found = plan(Block(identity=True), "ascend")
    assert ("relu", "add") in found.reads_float
    assert [(f.name, f.op) for f in found.float_ops] == [("add", "add"), ("act", "relu")]
    assert found.float_ops[0].reason == "ascend quantizes no add"


def test_ops_that_move_integers_share_one_scale() -> None:
    found = plan(small_networks()["concat"][0], "snpe")
    (shared,) = (p for p in found.activations if len(p.tensors) > 1 and "cat" in p.tensors)
    assert len(shared.tensors) == 3  # both branches and their concatenation
    assert [p.tensors for p in found.activations if "pool" in p.tensors] == [("relu", "pool")]


class Chain(nn.Module):
    """Three layers, the same tensor read by two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.d(torch.sigmoid(self.b(y)) + self.c(y))


def test_widths() -> None:
    x = torch.randn(2, 4)
    found = plan(Chain(), "snpe", Rules(bits={"b": 2, "c": (3, 6)}), x, weight=4, activation=5)
    assert {w.name: w.scheme.bits for w in found.weights} == {"a": 8, "b": 2, "c": 3, "d": 8}
    bits = {p.name: p.scheme.bits for p in found.activations}
    assert (bits["x"], bits["a"], bits["add"]) == (8, 6, 8)  # the wider of two readers; the edges
    assert bits["sigmoid"] == 5


def test_a_rule_for_an_op_without_weights_is_the_width_of_its_result() -> None:
    usual = {p.name: p.scheme.bits for p in plan(Block(), "openvino-cpu", weight=4, activation=4).activations}
    assert usual["relu"] == 4
    ruled = plan(Block(), "openvino-cpu", Rules(bits={"relu": (4, 6)}), weight=4, activation=4).activations
    assert {p.name: p.scheme.bits for p in ruled} == usual | {"relu": 6}


def test_kept_in_float() -> None:
    found = plan(Chain(), "snpe", Rules(keep_float=("b",)), torch.randn(2, 4))
    assert [w.name for w in found.weights] == ["a", "c", "d"]
    assert {f.name: f.reason for f in found.float_ops}["b"] == "kept in float by the rule 'b'"
    with pytest.raises(UnknownNameError, match="unknown layer 'bb'"):
        plan(Chain(), "snpe", Rules(keep_float=("bb",)), torch.randn(2, 4))


def test_forced_but_impossible() -> None:
    with pytest.raises(
        UnsupportedError, match="'sigmoid' demands that sigmoid is quantized, but snpe has no integer s"
    ):
        plan(Chain(), "snpe", Rules(quantize=("sigmoid",)), torch.randn(2, 4))
    up = nn.Sequential(nn.Conv1d(4, 4, 1), nn.ConvTranspose1d(4, 4, 2))
    x = torch.randn(2, 4, 6)
    with pytest.raises(UnsupportedError, match="isobit quantizes no ConvTranspose1d"):
        plan(up, "snpe", Rules(quantize=("1",)), x)
    (stays,) = plan(up, "snpe", x=x).float_ops
    assert (stays.name, stays.reason) == ("1", "isobit quantizes no ConvTranspose1d")
    assert [w.name for w in plan(up, "snpe", Rules(quantize=("0",)), x).weights] == ["0"]


def test_nothing_to_quantize() -> None:
    with pytest.raises(UnsupportedError, match="snpe can quantize no op of this network"):
        plan(nn.Sequential(nn.Sigmoid(), nn.Tanh()), "snpe")


def test_channels_of_a_transposed_convolution_are_its_second_axis() -> None:
    found = plan(nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.Conv2d(5, 2, 1)), "tensorrt")
    assert [w.scheme.granularity.axis for w in found.weights] == [1, 0]  # type: ignore[union-attr]


def test_a_functional_batch_norm_does_not_disturb() -> None:
    net, inputs = small_networks()["functional"]
    found = place(capture(net, inputs), TARGETS["tensorrt"])
    assert {"conv", "batch_norm"}.isdisjoint(points(found))  # fused up to the ReLU, as for a module
    assert "relu" in points(found)
    assert {w.name for w in found.weights} == {"conv", "classes_linear"}


def test_each_quantizer_has_a_line() -> None:
    found = plan(Block(), "academic")
    assert found.nodes()[0] == "activation x: s8 or u8 symmetric per-tensor"
    assert "weight conv: s8 symmetric per-tensor" in found.nodes()
    shared = plan(small_networks()["concat"][0], "snpe").nodes()
    assert any(line.endswith("(shared by 3 tensors)") for line in shared)


def test_a_profile_without_edges() -> None:
    profile = replace(TARGETS["snpe"].with_bits(weight=4), edge_bits=None)
    found = place(capture(Chain().eval(), torch.randn(2, 4)), profile)
    assert {w.scheme.bits for w in found.weights} == {4}


class Wide(nn.Module):
    """A convolution, a layer of 64 inputs and one of 40, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.wide, self.odd = nn.Linear(64, 40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(torch.relu(self.wide(self.conv(x).flatten(1))))


def test_weights_alone_leave_activations_and_other_layers_in_float() -> None:
    found = place(capture(Wide().eval(), torch.randn(2, 3, 5, 5)), TARGETS["onnxruntime-weights"])
    assert not found.activations
    assert not found.reads_float
    assert [(w.name, w.scheme.granularity, w.scheme.bits) for w in found.weights] == [("wide", PerGroup(1, 32), 4)]
    reasons = {f.name: f.reason for f in found.float_ops}
    assert reasons.keys() == {"conv", "odd"}
    assert reasons["conv"] == "onnxruntime-weights quantizes no conv"
    assert reasons["odd"] == "its 40 inputs are no multiple of the 32 of a group: give another group_size"


def test_groups_that_fit_no_layer_are_an_error() -> None:
    with pytest.raises(UnsupportedError, match=r"can quantize no op of this network: 0: its 40 inputs are no multiple"):
        plan(nn.Sequential(nn.Linear(40, 5)), "openvino-weights", x=torch.randn(2, 40))


def test_dynamic_ranges_are_at_the_inputs_of_linear_layers() -> None:
    rules = Rules(bits={"wide": 4})
    found = place(capture(Wide().eval(), torch.randn(2, 3, 5, 5)), TARGETS["onnxruntime-dynamic"], rules)
    assert {p.tensors for p in found.activations} == {("flatten",), ("relu",)}
    assert {p.scheme for p in found.activations} == {Scheme(signed=False, symmetric=False)}
    assert {w.name: w.scheme.bits for w in found.weights} == {"wide": 4, "odd": 8}
