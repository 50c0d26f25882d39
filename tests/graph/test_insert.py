"""Insertion: the float network is untouched until calibration, then exactly the planned tensors are rounded."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.core.errors import CalibrationError, SettingError
from isobit.graph.capture import capture
from isobit.graph.insert import SLOTS, insert, preparation, slots
from isobit.graph.placement import place
from isobit.quantizers import Fixed
from isobit.targets import TARGETS
from zoo import small_networks


def prepared(name: str, target: str = "snpe") -> tuple[fx.GraphModule, nn.Module, tuple[Tensor, ...]]:
    net, inputs = small_networks()[name]
    return isobit.prepare(net, inputs, target=target), net, inputs


@pytest.mark.parametrize("name", small_networks())
def test_nothing_changes_before_calibration(name: str) -> None:
    model, net, inputs = prepared(name)
    torch.testing.assert_close(model.eval()(*inputs), net(*inputs), rtol=1e-5, atol=1e-5)
    assert {s.mode for s in slots(model)} == {"float"}


@pytest.mark.parametrize("target", ["ascend", "snpe"])
@pytest.mark.parametrize("name", ["residual", "concat", "mlp"])
def test_each_planned_tensor_passes_its_slot(name: str, target: str) -> None:
    model, _, _ = prepared(name, target)
    plan = preparation(model).plan
    keys = [n.target for n in model.graph.nodes if str(n.target).startswith(SLOTS)]
    assert len(set(keys)) == len(plan.activations)
    assert len(keys) == sum(len(p.tensors) for p in plan.activations)
    assert [s.point for s in slots(model)] == [p.name for p in plan.activations] + [
        f"{w.name}.weight" for w in plan.weights
    ]


def test_float_readers_keep_the_float_tensor_also_behind_a_dropout() -> None:
    """relu → dropout → linear and add: on graph 1 the linear layer alone sees rounded values."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            y = self.drop(torch.relu(self.a(x)))
            return self.c(self.b(y) + y)

    model = isobit.prepare(Net(), torch.randn(2, 4), target="ascend")
    nodes = {n.name: n for n in model.graph.nodes}
    assert nodes["add"].args == (nodes["b"], nodes["drop"])
    (slot,) = nodes["b"].args
    assert str(slot.target).startswith(SLOTS)
    assert slot.args == (nodes["drop"],)


def test_twice_is_an_error_and_so_is_never() -> None:
    net, inputs = small_networks()["mlp"]
    model = capture(net, inputs)
    with pytest.raises(SettingError, match=r"isobit\.quantize or isobit\.prepare"):
        preparation(model)
    plan = place(model, TARGETS["snpe"])
    insert(model, plan, profile=TARGETS["snpe"], weight=Fixed(), activation=Fixed())
    with pytest.raises(SettingError, match="prepared already"):
        insert(model, plan, profile=TARGETS["snpe"], weight=Fixed(), activation=Fixed())


def test_names_that_differ_in_their_dots_alone_get_slots_of_their_own() -> None:
    net = nn.Sequential()
    net.add_module("a_b", nn.Linear(4, 4))
    net.add_module("a", nn.Sequential())
    net.a.add_module("b", nn.Linear(4, 4))
    net.add_module("last", nn.Linear(4, 4))
    model = isobit.quantize(net.eval(), [torch.randn(8, 4)], target="snpe")
    assert {"a_b", "a.b"} <= {s.point for s in slots(model)}
    assert len({id(s) for s in slots(model)}) == len(slots(model))


def test_state_and_copies() -> None:
    """A calibrated state loads into a fresh preparation; a deep copy is independent."""
    net, inputs = small_networks()["residual"]
    model = isobit.quantize(net, [(inputs,)], target="snpe")
    fresh = isobit.prepare(net, inputs, target="snpe")
    fresh.load_state_dict(model.state_dict())
    for slot in slots(fresh):
        slot.mode = "quantize"
    assert torch.equal(fresh.eval()(*inputs), model(*inputs))
    other = copy.deepcopy(model)
    before = model(*inputs)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model(*inputs), before)
    assert preparation(other).plan == preparation(model).plan


def test_a_quantizer_that_runs_too_early_says_what_to_do() -> None:
    model, _, inputs = prepared("mlp")
    for slot in slots(model):
        slot.mode = "quantize"
    with pytest.raises(CalibrationError, match="before it was calibrated"):
        model(*inputs)
